//! The forms of clusters files: our own, mttl's, and the published task sets of MBC.

pub(crate) mod clusters_json;
pub(crate) mod mttl_lists;
pub(crate) mod name_lists;
pub(crate) mod pretty_json;
pub(crate) mod published;
