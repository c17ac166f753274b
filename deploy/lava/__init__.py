"""Run `.net` files on the Lava simulator, in a supervised process of its own."""
