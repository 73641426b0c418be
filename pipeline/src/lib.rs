//! Manifest to plan to run: axes and joins, keys, leakage, scheduling, lineage.
//!
//! This crate prints nothing and draws nothing: what happens is told as [`event::Event`]s, what is wrong as
//! [`diagnostic::Diagnostic`]s.

pub mod diagnostic;
pub mod event;
mod executor;
pub mod graph;
pub mod key;
pub mod leakage;
pub mod lineage;
pub mod lint;
pub mod manifest;
pub mod origin;
pub mod pack;
pub mod pattern;
pub mod plan;
pub mod plan_json;
pub mod printable;
pub mod protocol;
pub mod run;
mod schedule;
pub mod schema;
pub mod select;
pub mod source;
pub mod tree;
pub mod why;

pub use executor::{processes, sandbox};
pub use petgraph::graph::NodeIndex;
