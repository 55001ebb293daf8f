"""Tests on an emulated accelerator (:mod:`tests.emulated.device`); ``tests/test_emulated.py`` runs them."""
