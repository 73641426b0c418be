//! The stage kinds and their registry: one file a kind, holding its parameters, its specification and its work.
//!
//! This file only lists them; it is no part of any kind's code fingerprint, so a further kind reruns nothing.

pub mod backbone;
pub mod clip_features;
pub mod clip_weights;
pub mod confounder_dictionary;
pub mod context;
pub mod evaluate;
pub mod ingest;
pub mod phantom_clip;
pub mod phantoms;
pub mod plant_confounder;
pub mod select;
pub mod spec;
pub mod table;
pub mod train;

use siteline_pipeline::protocol::StageKind;

use self::context::Ctx;
use crate::error::Result;

/// A kind's work.
pub type Work = fn(&Ctx) -> Result<()>;

/// Every kind of this pack, with its work.
pub fn registry() -> Vec<(StageKind, Work)> {
    vec![
        (ingest::kind(), ingest::run),
        (clip_features::kind(), clip_features::run),
        (clip_weights::kind(), clip_weights::run),
        (confounder_dictionary::kind(), confounder_dictionary::run),
        (train::kind(), train::run),
        (select::kind(), select::run),
        (evaluate::kind(), evaluate::run),
        (table::kind(), table::run),
        (phantoms::kind(), phantoms::run),
        (plant_confounder::kind(), plant_confounder::run),
        (phantom_clip::kind(), phantom_clip::run),
    ]
}
