//! Around the clustering of a library's experts: how they are opened, how many clusters there are, and how it is told.

pub mod mbc;
pub mod start;
pub mod tables;
