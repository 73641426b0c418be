//! The networks, each beside the equations that it follows.

pub mod causalclipseg;
pub mod clip;
pub mod clipseg;
pub mod head;
pub mod intervention;
pub mod start;
pub mod style;
pub mod transformer;
pub mod unet;
