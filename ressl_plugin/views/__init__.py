"""Views of images: what a recipe says of them, their operations, and who draws them."""
