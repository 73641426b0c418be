//! U-Net from pixels (Ronneberger et al., MICCAI 2015; methods.md 3): the baseline without CLIP.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::contract::{At, Batch, Forward, Given, Method, Seen, Takes, Wants};
use crate::data::Content;
use crate::error::{Result, StageError};
use crate::loss;
use crate::model::unet::Unet;
use crate::shared::Shared;

/// Parameters of U-Net.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Channels on the first level; 64 in the paper, and twice as many on each of four further levels.
    #[schemars(range(min = 1, max = 1024))]
    pub width: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { width: 64 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Pixels);

/// Builds the network.
///
/// # Errors
/// Images too small for four halvings.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    if given.sizes.side < 16 {
        return Err(StageError::Request("unet needs images of at least 16 pixels a side".into()));
    }
    Ok(Box::new(UnetMethod { network: Unet::new(path, params.width), side: given.sizes.side }))
}

struct UnetMethod {
    network: Unet,
    side: i64,
}

impl Method for UnetMethod {
    fn forward(&self, _shared: &Shared, batch: &Batch, _at: Option<At>) -> Forward {
        let Content::Pixels(pixels) = &batch.content else { unreachable!("it asked for pixels") };
        let logits = self.network.forward(&(pixels / 127.5 - 1.0));
        let size = [self.side, self.side];
        let logits =
            if logits.size()[2..] == size { logits } else { logits.upsample_bilinear2d(size, false, None, None) };
        Forward { logits: loss::two_logits(&logits), other: None, inner: None }
    }

    /// Binary cross-entropy and Dice.
    fn objective(&self, seen: &Seen) -> Tensor {
        loss::segmentation(&seen.forward.logits, seen.masks) + loss::dice(&seen.forward.logits, seen.masks)
    }
}
