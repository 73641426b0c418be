//! Phantoms: made images that look roughly like endoscopy and whose truth is known.
//!
//! A phantom shows mucosa with one lesion of a [`LesionClass`], seen through confounders: nuisances of the
//! twelve kinds that MCDRL's dictionary names ([`Confounder`]). A [`PhantomSite`] says how often each confounder
//! occurs there, and whether it follows the lesion, so that a spurious cue can be planted in some sites and
//! taken away in others. The generator also returns the [`Truth`] of every image.
//!
//! Phantoms are no medical images and no statement about patients; everything made from them says `phantom`.
//!
//! Every image depends on (site seed, site name, index) alone, through a ChaCha stream and `libm` arithmetic, so the
//! same specification gives the same bytes on every machine and with any number of threads.

mod draw;
mod texture;

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_cache::Digest;

/// The five lesion types that MCDRL's table reports, each with a look of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LesionClass {
    /// Raised, pink, smooth, lit from one side.
    Polyp,
    /// Dark purple, irregular outline, rough.
    Tumor,
    /// Flat, bright red, without a clear edge.
    Inflammation,
    /// Pale, small, with a sharp edge.
    Nodule,
    /// Yellowish, translucent, with a light rim.
    Cyst,
}

impl LesionClass {
    /// Every class, in the order of the results tables.
    pub const ALL: [Self; 5] = [Self::Polyp, Self::Tumor, Self::Inflammation, Self::Nodule, Self::Cyst];

    /// The word used in prompts, manifests and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Polyp => "polyp",
            Self::Tumor => "tumor",
            Self::Inflammation => "inflammation",
            Self::Nodule => "nodule",
            Self::Cyst => "cyst",
        }
    }
}

/// The twelve nuisances of MCDRL's dictionary (methods.md 1.3), in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Confounder {
    /// The whole image is out of focus.
    Blur,
    /// Displaced and discoloured lines, as of a bad transmission.
    Artifacts,
    /// Too much light.
    Bright,
    /// Too little light.
    Dark,
    /// Light that falls off across the image.
    Uneven,
    /// Narrow-band imaging: green and blue light only.
    NarrowBand,
    /// White light: whatever is not narrow-band.
    WhiteLight,
    /// The camera close to the wall: large vessels, few folds.
    Near,
    /// The camera far away: the dark lumen and its rings of folds are in view.
    Far,
    /// Strands of pale yellow-green mucus.
    Mucus,
    /// Pools of dark red blood.
    Blood,
    /// Saturated specular spots.
    Reflection,
}

impl Confounder {
    /// Every confounder, in the dictionary's order.
    pub const ALL: [Self; 12] = [
        Self::Blur,
        Self::Artifacts,
        Self::Bright,
        Self::Dark,
        Self::Uneven,
        Self::NarrowBand,
        Self::WhiteLight,
        Self::Near,
        Self::Far,
        Self::Mucus,
        Self::Blood,
        Self::Reflection,
    ];

    /// The name used in site specifications and truth files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blur => "blur",
            Self::Artifacts => "artifacts",
            Self::Bright => "bright",
            Self::Dark => "dark",
            Self::Uneven => "uneven",
            Self::NarrowBand => "narrow-band",
            Self::WhiteLight => "white-light",
            Self::Near => "near",
            Self::Far => "far",
            Self::Mucus => "mucus",
            Self::Blood => "blood",
            Self::Reflection => "reflection",
        }
    }

    /// Groups of which an image shows at most one member.
    const EXCLUSIVE: [&'static [Self]; 2] = [&[Self::Bright, Self::Dark, Self::Uneven], &[Self::Near, Self::Far]];
}

/// A made site: how many images, how they are seen, and what follows what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhantomSite {
    /// Number of images.
    pub count: usize,
    /// Number of patients that the images are dealt to in turn; each has a mucosa tint and texture of its own. 0: one each.
    #[serde(default)]
    pub patients: usize,
    /// Classes that occur, each as often as the others.
    #[serde(default = "all_classes")]
    pub classes: Vec<LesionClass>,
    /// Chance of each confounder, 0 to 1.
    #[serde(default)]
    pub confounders: BTreeMap<Confounder, f64>,
    /// Chance of a confounder in images of one class, in place of the general one: a planted correlation.
    #[serde(default)]
    pub by_class: BTreeMap<LesionClass, BTreeMap<Confounder, f64>>,
    /// Chance that a local confounder (mucus, blood, reflection), where it occurs, lies on the lesion rather
    /// than clear of it: a planted shortcut for segmentation.
    #[serde(default)]
    pub on_lesion: BTreeMap<Confounder, f64>,
    /// Multipliers of red, green and blue: the colour cast of this site's processor.
    #[serde(default = "no_cast")]
    pub colour_cast: [f32; 3],
    /// Whether the picture is a round field on black, as with many endoscopes.
    #[serde(default)]
    pub round_field: bool,
    /// Standard deviation of sensor noise, in units of full scale.
    #[serde(default = "default_noise")]
    pub noise: f32,
}

fn all_classes() -> Vec<LesionClass> {
    LesionClass::ALL.to_vec()
}
fn no_cast() -> [f32; 3] {
    [1.0; 3]
}
fn default_noise() -> f32 {
    0.015
}

/// What is true of one phantom: everything that the image was drawn from, apart from its noise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    /// File stem: `phantom_0007`.
    pub id: String,
    /// `p003`; images of one patient share the tint and the texture of the mucosa.
    pub patient: String,
    /// The lesion's class.
    pub class: LesionClass,
    /// Centre of the lesion, as shares of width and height.
    pub centre: [f32; 2],
    /// Half axes of the lesion's ellipse, as shares of the image's side.
    pub radii: [f32; 2],
    /// Rotation of the ellipse in radians.
    pub angle: f32,
    /// Confounders that are in view.
    pub confounders: Vec<Confounder>,
    /// Those among the local confounders that were put on the lesion.
    pub on_lesion: Vec<Confounder>,
}

impl Truth {
    /// Whether the image shows `confounder`.
    pub fn shows(&self, confounder: Confounder) -> bool {
        self.confounders.contains(&confounder)
    }
}

/// One made image.
pub struct Phantom {
    /// What it was drawn from.
    pub truth: Truth,
    /// RGB bytes, row by row: side x side x 3.
    pub image: Vec<u8>,
    /// 0 or 255, row by row: side x side.
    pub mask: Vec<u8>,
    /// Width and height in pixels.
    pub side: usize,
}

impl PhantomSite {
    /// The truth of image `index` of site `name`.
    pub fn truth(&self, name: &str, seed: u64, index: usize) -> Truth {
        let mut rng = stream(name, seed, index, "truth");
        let class = self.classes[rng.random_range(0..self.classes.len())];
        let mut confounders: Vec<Confounder> = Vec::new();
        // Each confounder has its own draw, taken whether or not it is used: changing one chance leaves the others alone.
        for confounder in Confounder::ALL {
            let draw: f64 = rng.random();
            if draw < self.chance(class, confounder) {
                confounders.push(confounder);
            }
        }
        for group in Confounder::EXCLUSIVE {
            let keep: f64 = rng.random();
            let members: Vec<_> = group.iter().copied().filter(|c| confounders.contains(c)).collect();
            if members.len() > 1 {
                let kept = members[((keep * members.len() as f64) as usize).min(members.len() - 1)];
                confounders.retain(|c| !members.contains(c) || *c == kept);
            }
        }
        confounders.retain(|c| *c != Confounder::WhiteLight);
        if !confounders.contains(&Confounder::NarrowBand) {
            confounders.push(Confounder::WhiteLight);
            confounders.sort();
        }
        let on_lesion = [Confounder::Mucus, Confounder::Blood, Confounder::Reflection]
            .into_iter()
            .filter(|c| {
                let draw: f64 = rng.random();
                confounders.contains(c) && draw < self.on_lesion.get(c).copied().unwrap_or(0.0)
            })
            .collect();
        let scale = if confounders.contains(&Confounder::Near) {
            1.35
        } else if confounders.contains(&Confounder::Far) {
            0.72
        } else {
            1.0
        };
        let base = match class {
            LesionClass::Nodule => 0.13,
            LesionClass::Inflammation => 0.21,
            LesionClass::Tumor => 0.19,
            _ => 0.165,
        } * scale;
        let radius = base * rng.random_range(0.85..1.2f32);
        let aspect = rng.random_range(0.75..1.3f32);
        let margin = 0.08 + radius;
        let patients = if self.patients == 0 { self.count.max(1) } else { self.patients };
        Truth {
            id: format!("phantom_{index:04}"),
            patient: format!("p{:03}", index % patients),
            class,
            centre: [rng.random_range(margin..1.0 - margin), rng.random_range(margin..1.0 - margin)],
            radii: [radius * aspect, radius / aspect],
            angle: rng.random_range(0.0..std::f32::consts::PI),
            confounders,
            on_lesion,
        }
    }

    /// Draws image `index` of site `name`, `side` pixels wide and high.
    pub fn draw(&self, name: &str, seed: u64, index: usize, side: usize) -> Phantom {
        let truth = self.truth(name, seed, index);
        // Images of one patient share the mucosa: its stream is named by the patient, not by the image.
        let patients = if self.patients == 0 { self.count.max(1) } else { self.patients };
        let mut mucosa = stream(name, seed, index % patients, "patient");
        let mut rng = stream(name, seed, index, "pixels");
        let (image, mask) = draw::draw(self, &truth, &mut mucosa, &mut rng, side);
        Phantom { truth, image, mask, side }
    }

    fn chance(&self, class: LesionClass, confounder: Confounder) -> f64 {
        self.by_class
            .get(&class)
            .and_then(|of_class| of_class.get(&confounder))
            .or_else(|| self.confounders.get(&confounder))
            .copied()
            .unwrap_or(0.0)
    }
}

/// A random stream for one purpose, independent of every other.
fn stream(name: &str, seed: u64, index: usize, purpose: &str) -> ChaCha8Rng {
    let digest = Digest::of_bytes(format!("phantom\0{name}\0{seed}\0{index}\0{purpose}").as_bytes());
    ChaCha8Rng::from_seed(*digest.as_bytes())
}
