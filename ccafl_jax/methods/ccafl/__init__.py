"""CCAFL: intra-camera supervised ReID with learnable prompts, ICDL and ICAL."""
