"""jaxdeblur: the JAX toolkit for video deblurring."""
