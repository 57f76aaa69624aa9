//! Placeholder for the module's doc.
