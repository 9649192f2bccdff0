"""The papers' methods: where models and geometry meet."""
