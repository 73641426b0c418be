//! Methods: what each adds to the one trainer, and their registry.
//!
//! To add one: a file under `method/` with `Params`, `WANTS` and `build`, its line in [`methods!`] below, a section in
//! docs/methods.md, a test.
//!
//! This file is no part of any code fingerprint: it only says which method's file is at work, and the parameter `method`
//! says that too. So a further method reruns nothing, and an edited one only its own trainings.

pub mod contract;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use self::contract::{Given, Method, Wants};
use crate::error::Result;

macro_rules! methods {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal in $module:ident;)+) => {
        $(pub mod $module;)+

        /// The registered methods.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum MethodName {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
        }

        /// Parameters of single methods; each group counts for its own method alone.
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        pub struct MethodParams {
            $($(#[doc = $doc])+ #[serde(rename = $name)] pub $module: $module::Params,)+
        }

        impl MethodName {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// What the method has to be given.
            pub fn wants(self) -> Wants {
                match self { $(Self::$variant => $module::WANTS,)+ }
            }

            /// As manifests and tables spell it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        /// Builds a method's variables under `path`.
        ///
        /// # Errors
        /// A method that lacks what it needs.
        pub fn build(
            name: MethodName,
            params: &MethodParams,
            path: &nn::Path,
            given: Given,
        ) -> Result<Box<dyn Method>> {
            match name { $(MethodName::$variant => $module::build(&params.$module, path, given),)+ }
        }
    };
}

methods! {
    /// Empirical risk minimisation: the baseline that all else is measured against.
    Erm = "erm" in erm;
    /// U-Net from pixels, without CLIP.
    Unet = "unet" in unet;
    /// MixStyle: styles of images are mixed within the encoder.
    MixStyle = "mixstyle" in mixstyle;
    /// MixStyle on cached feature maps: another method than the published one.
    MixStyleFeature = "mixstyle-feature" in mixstyle_feature;
    /// Fourier amplitude mixing: images take on the amplitudes of others.
    Fourier = "fourier" in fourier;
    /// GroupDRO: sites with a high loss count for more.
    GroupDro = "groupdro" in groupdro;
    /// V-REx: a penalty on the variance of the sites' losses.
    Vrex = "vrex" in vrex;
    /// CORAL: a penalty on differences between the sites' features in mean and covariance.
    Coral = "coral" in coral;
    /// CoOp: learned context words in front of the class, pixels by their similarity to it.
    CoOp = "coop" in coop;
    /// IRM: a penalty on the slope of each site's loss in the scale of the logits.
    Irm = "irm" in irm;
    /// DANN: features that a discriminator cannot tell sites by.
    Dann = "dann" in dann;
    /// SAM: weights whose whole neighbourhood has a low loss.
    Sam = "sam" in sam;
    /// SWAD: weights averaged over the valley of the validation loss.
    Swad = "swad" in swad;
    /// RandConv: images through random convolutions.
    RandConv = "randconv" in randconv;
    /// CLIPSeg: a transformer decoder on three layers of a frozen image tower, conditioned on a text.
    ClipSeg = "clipseg" in clipseg;
    /// MCDRL: target region selection and causal intervention with a confounder dictionary.
    Mcdrl = "mcdrl" in mcdrl;
    /// CausalCLIPSeg: maskers part causal from confounding features in a game, texts make the kernels.
    CausalClipSeg = "causalclipseg" in causalclipseg;
}
