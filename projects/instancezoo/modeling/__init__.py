"""Skeletons that several methods share; importing it registers them in Detectron2's registries."""
