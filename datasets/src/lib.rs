//! Sites and their samples: adapters, decoding, splits, and phantoms whose truth is known.
//!
//! Nothing here knows of stages or of the store; the crate uses `siteline-cache` for digests alone.

pub mod adapter;
pub mod decode;
mod error;
pub mod phantom;
pub mod raster;
pub mod similar;
pub mod split;

pub use error::DatasetError;
