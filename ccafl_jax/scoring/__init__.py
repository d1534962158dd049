"""Where data sets meet evaluation: which features are queries and gallery, and the figures."""
