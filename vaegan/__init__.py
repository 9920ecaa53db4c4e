"""Images, shards, networks, losses, training, sampling and metrics of the VAE-GAN."""
