//! What needs a router and a trainer: learned routers, LoraHub, CAT, adaptation, and MBC in two stages.
