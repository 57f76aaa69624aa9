//! What is shown: the report and the windows.

pub mod report;
