//! Power from the CPU model's figures and utilisation.
