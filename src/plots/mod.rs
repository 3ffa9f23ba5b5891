//! Plots of a table as SVG files that stand alone: light and dark, without scripts, fonts or network.
//!
//! Each plot is a template (`*.svg`) and a struct of what it shows, and is no wider than a phone can show with readable
//! text. What is not a finite number has no mark.

pub mod axis;
pub mod curve_panels;
pub mod difference_plot;
pub mod plot_frame;
pub mod score_plot;
