"""Who asks: BentoML services over bundles, and the Open Inference Protocol over REST and gRPC."""
