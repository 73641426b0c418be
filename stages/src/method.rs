//! Methods: what each adds to the one trainer, and their registry.
//!
//! A method turns encoded features into what the head sees, and may add penalties to the segmentation loss. To add one:
//! a file under `method/`, a variant of [`MethodName`] with its line in [`build`], a section in docs/methods.md, a test.
//!
//! This file is no part of any code fingerprint: it only says which method's file is at work, and the parameter `method`
//! says that too. So a further method reruns nothing, and an edited one only its own trainings.

pub mod contract;
pub mod coral;
pub mod erm;
pub mod groupdro;
pub mod irm;
pub mod mcdrl;
pub mod vrex;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use self::contract::{Method, Sizes};
use crate::dictionary::Dictionary;
use crate::error::Result;

/// The registered methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodName {
    /// Empirical risk minimisation: the baseline that all else is measured against.
    Erm,
    /// GroupDRO: sites with a high loss count for more.
    GroupDro,
    /// V-REx: a penalty on the variance of the sites' losses.
    Vrex,
    /// IRM: a penalty on the slope of each site's loss in the scale of the logits.
    Irm,
    /// CORAL: a penalty on differences between the sites' features in mean and covariance.
    Coral,
    /// MCDRL: target region selection and causal intervention with a confounder dictionary.
    Mcdrl,
}

/// Parameters of single methods; each group counts for its own method alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MethodParams {
    /// Parameters of GroupDRO.
    pub groupdro: groupdro::Params,
    /// Parameters of V-REx.
    pub vrex: vrex::Params,
    /// Parameters of IRM.
    pub irm: irm::Params,
    /// Parameters of CORAL.
    pub coral: coral::Params,
    /// Parameters of MCDRL.
    pub mcdrl: mcdrl::Params,
}

/// Builds a method's parameters under `path`. With a dictionary its rows are taken from there, without one they are left
/// to be filled from a checkpoint.
///
/// # Errors
/// A method that needs a dictionary and has none.
pub fn build(
    name: MethodName,
    params: &MethodParams,
    path: &nn::Path,
    sizes: &Sizes,
    dictionary: Option<&Dictionary>,
) -> Result<Box<dyn Method>> {
    Ok(match name {
        MethodName::Erm => Box::new(erm::Erm),
        MethodName::GroupDro => Box::new(groupdro::GroupDro::new(&params.groupdro, path, sizes)),
        MethodName::Vrex => Box::new(vrex::Vrex { params: params.vrex.clone() }),
        MethodName::Irm => Box::new(irm::Irm { params: params.irm.clone() }),
        MethodName::Coral => Box::new(coral::Coral { params: params.coral.clone() }),
        MethodName::Mcdrl => Box::new(mcdrl::Mcdrl::new(&params.mcdrl, path, sizes, dictionary)?),
    })
}
