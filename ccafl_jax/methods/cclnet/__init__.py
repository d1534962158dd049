"""CCLNet: unsupervised re-identification between visible and infrared cameras."""
