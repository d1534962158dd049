"""Methods: each names its phases and ties models, losses, memory and labels together."""
