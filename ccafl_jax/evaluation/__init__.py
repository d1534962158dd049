"""From features and labels to numbers: ranking metrics and camera bias."""
