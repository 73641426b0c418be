//! The captions that the phantom CLIP is trained with: every true sentence of a few forms.

use siteline_datasets::phantom::{Confounder, LesionClass, Truth};
use tch::{Device, Tensor};

use super::pool::Pool;
use crate::error::Result;
use crate::model::clip::Tokenizer;

/// The prompt for a patch without a lesion.
pub const NORMAL: &str = "normal mucosa in an endoscopic image";

/// What a caption says of an image.
enum Claim {
    Class(LesionClass),
    Shows(Confounder),
    ShowsBoth(Confounder, Confounder),
    ClassShows(LesionClass, Confounder),
    /// Holds for patches, never for a whole image, as every phantom has a lesion.
    Normal,
}

/// All captions, and which of them hold for an image.
pub struct CaptionBank {
    /// The texts; the class prompts come first, then normal mucosa, then the confounders' prompts.
    pub captions: Vec<String>,
    claims: Vec<Claim>,
}

/// The confounder in words, as the dictionary's prompts name it (methods.md 1.3).
pub fn domain_words(confounder: Confounder) -> &'static str {
    match confounder {
        Confounder::Blur => "blur",
        Confounder::Artifacts => "artifacts",
        Confounder::Bright => "bright lighting",
        Confounder::Dark => "dark lighting",
        Confounder::Uneven => "uneven lighting",
        Confounder::NarrowBand => "narrow-band imaging",
        Confounder::WhiteLight => "white light imaging",
        Confounder::Near => "a near view",
        Confounder::Far => "a far view",
        Confounder::Mucus => "mucus",
        Confounder::Blood => "blood",
        Confounder::Reflection => "specular reflection",
    }
}

/// Index of normal mucosa in the bank, and so the number of class prompts before it.
pub const NORMAL_INDEX: i64 = LesionClass::ALL.len() as i64;

impl CaptionBank {
    /// The bank: classes, confounders, pairs of confounders, classes with a confounder.
    pub fn new() -> Self {
        let mut bank = Self { captions: Vec::new(), claims: Vec::new() };
        for class in LesionClass::ALL {
            bank.add(format!("A {} in an endoscopic image", class.name()), Claim::Class(class));
        }
        bank.add(NORMAL.to_owned(), Claim::Normal);
        for domain in Confounder::ALL {
            bank.add(format!("An endoscopy image with {}", domain_words(domain)), Claim::Shows(domain));
        }
        for (index, first) in Confounder::ALL.into_iter().enumerate() {
            for second in Confounder::ALL.into_iter().skip(index + 1) {
                let text = format!("An endoscopy image with {} and {}", domain_words(first), domain_words(second));
                bank.add(text, Claim::ShowsBoth(first, second));
            }
        }
        for class in LesionClass::ALL {
            for domain in Confounder::ALL {
                let text = format!("A {} with {}", class.name(), domain_words(domain));
                bank.add(text, Claim::ClassShows(class, domain));
            }
        }
        bank
    }

    fn add(&mut self, caption: String, claim: Claim) {
        self.captions.push(caption);
        self.claims.push(claim);
    }

    /// Index of a confounder's own prompt.
    pub fn index_of(confounder: Confounder) -> i64 {
        let place = Confounder::ALL.iter().position(|c| *c == confounder).expect("every confounder is listed");
        NORMAL_INDEX + 1 + place as i64
    }

    /// The token ids that occur in the bank, ascending.
    pub fn token_ids(&self, tokenizer: &Tokenizer) -> Vec<i64> {
        let mut ids: Vec<i64> = self.captions.iter().flat_map(|caption| tokenizer.ids(caption)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Token rows of every caption.
    pub fn rows(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<Option<i64>>>> {
        self.captions.iter().map(|caption| tokenizer.encode(caption, 77)).collect()
    }

    /// The rows of `texts` that patches are compared with: the classes, then normal mucosa.
    pub fn place_rows(&self, texts: &Tensor) -> Tensor {
        texts.narrow(0, 0, NORMAL_INDEX + 1)
    }

    /// Which captions hold for which images of a batch: (B, captions), 0 or 1.
    pub fn holds(&self, pool: &Pool, batch: &[usize], device: Device) -> Tensor {
        let values: Vec<f32> = batch
            .iter()
            .flat_map(|index| self.claims.iter().map(|claim| f32::from(u8::from(claim.holds(&pool.truths[*index])))))
            .collect();
        Tensor::from_slice(&values).view([batch.len() as i64, self.claims.len() as i64]).to_device(device)
    }
}

impl Claim {
    fn holds(&self, truth: &Truth) -> bool {
        match self {
            Self::Class(class) => truth.class == *class,
            Self::Shows(domain) => truth.shows(*domain),
            Self::ShowsBoth(first, second) => truth.shows(*first) && truth.shows(*second),
            Self::ClassShows(class, domain) => truth.class == *class && truth.shows(*domain),
            Self::Normal => false,
        }
    }
}
