//! What the user sees: results on stdout, progress and messages on stderr.

pub mod cluster_tables;
pub mod console;
pub mod gain_table;
pub mod merge_tables;
pub mod progress_bar;
pub mod score_tables;
pub mod shared_a_warning;
pub mod text_table;
pub mod training_report;
