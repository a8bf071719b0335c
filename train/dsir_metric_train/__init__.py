"""Training of MASR-Net: network, data, augmentation, contrastive loss and the loop."""
