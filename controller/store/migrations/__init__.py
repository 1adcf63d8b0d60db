"""Migrations of the store, run by `controller.store.engine.upgrade`; a released one is never edited."""
