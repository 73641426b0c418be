//! What a model is trained and scored on: a site's samples, as cached features or as pixels, with their masks.

use std::path::Path;

use serde::{Deserialize, Serialize};
use siteline_datasets::raster::Rgb;
use tch::{Device, Kind, Tensor};

use crate::error::{Result, StageError};
use crate::frame;

/// What a model reads of each image.
#[derive(Debug)]
pub enum Content {
    /// Features of a frozen encoder: pooled (n, d) and dense (n, N, d).
    Features {
        /// (n, d).
        pooled: Tensor,
        /// (n, N, d).
        dense: Tensor,
    },
    /// Tokens in front of an image tower's last blocks.
    Activations {
        /// (n, 1 + N, width), the class token first.
        tokens: Tensor,
        /// Blocks that are left.
        blocks: i64,
    },
    /// Colours: (n, 3, s, s), red, green and blue from 0 to 255; bytes in a site, floats in a batch.
    Pixels(Tensor),
}

impl Content {
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Features { pooled, dense } => vec![pooled, dense],
            Self::Activations { tokens, .. } => vec![tokens],
            Self::Pixels(pixels) => vec![pixels],
        }
    }

    fn map(&self, of: impl Fn(&Tensor) -> Tensor) -> Self {
        match self {
            Self::Features { pooled, dense } => Self::Features { pooled: of(pooled), dense: of(dense) },
            Self::Activations { tokens, blocks } => Self::Activations { tokens: of(tokens), blocks: *blocks },
            Self::Pixels(pixels) => Self::Pixels(of(pixels)),
        }
    }

    /// The same tensors once more.
    pub fn handles(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// Some rows, on `device`, pixels as floats.
    pub fn rows(&self, index: &Tensor, device: Device) -> Self {
        let chosen = self.map(|tensor| tensor.index_select(0, index).to_device(device));
        match chosen {
            Self::Pixels(bytes) if bytes.kind() == Kind::Uint8 => Self::Pixels(bytes.to_kind(Kind::Float)),
            other => other,
        }
    }

    /// Several in one; all are of one sort.
    pub fn join(parts: &[Self]) -> Self {
        let of = |place: usize| Tensor::cat(&parts.iter().map(|part| part.tensors()[place]).collect::<Vec<_>>(), 0);
        match &parts[0] {
            Self::Features { .. } => Self::Features { pooled: of(0), dense: of(1) },
            Self::Activations { blocks, .. } => Self::Activations { tokens: of(0), blocks: *blocks },
            Self::Pixels(_) => Self::Pixels(of(0)),
        }
    }

    /// Images.
    pub fn count(&self) -> i64 {
        self.tensors()[0].size()[0]
    }

    /// Shapes of one image's tensors: contents that fit together have the same.
    pub fn shapes(&self) -> Vec<Vec<i64>> {
        self.tensors().iter().map(|tensor| tensor.size()[1..].to_vec()).collect()
    }
}

/// What made some features: models read features of the same origin as those that they were trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Digest of the weights' file.
    pub weights: String,
    /// The sizes of the CLIP, as JSON.
    pub model: String,
    /// How dense features were taken, as JSON.
    pub dense: String,
    /// Floats that the encoder was run in, as JSON.
    pub precision: String,
}

/// The samples of one site.
pub struct SiteData {
    /// The site.
    pub site: String,
    /// Sample ids.
    pub ids: Vec<String>,
    /// Patients.
    pub patients: Vec<String>,
    /// Classes, where known.
    pub classes: Vec<Option<String>>,
    /// Sentences, where the site has them.
    pub prompts: Vec<Option<String>>,
    /// Whether each sample validates.
    pub validates: Vec<bool>,
    /// What a model reads.
    pub content: Content,
    /// Masks: (n, S, S), 0 or 1, bytes.
    pub masks: Tensor,
    /// What made the features; nothing for pixels.
    pub origin: Option<Origin>,
}

impl SiteData {
    /// Reads `features.parquet`: features or activations.
    ///
    /// # Errors
    /// A file that is damaged or has other columns.
    pub fn features(site: &str, path: &Path) -> Result<Self> {
        let mut reader = frame::Reader::open(path, None)?;
        let side: u32 = reader.note("mask_side")?;
        let blocks: i64 = reader.note("blocks_left").unwrap_or(0);
        let (positions, width): (i64, i64) = if blocks > 0 {
            (reader.note("positions")?, reader.note("width")?)
        } else {
            let grid: i64 = reader.note("grid")?;
            (grid * grid, reader.note("embed_dim")?)
        };
        let mut about = About::default();
        let (mut pooled, mut dense, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(batch) = reader.next_batch()? {
            let rows = batch.rows() as i64;
            about.take(path, &batch)?;
            // One copy for a whole row group, from the file's buffer into the tensor.
            let floats = |name: &str, shape: &[i64]| -> Result<Tensor> {
                Ok(Tensor::f_from_slice(batch.floats(name)?)?.f_view(shape)?)
            };
            if blocks > 0 {
                dense.push(floats("tokens", &[rows, positions, width])?);
            } else {
                pooled.push(floats("pooled", &[rows, width])?);
                dense.push(floats("dense", &[rows, positions, width])?);
            }
            let packed = batch.bytes("mask")?.chunks(frame::packed_length(side));
            let bytes: Vec<u8> = packed.flat_map(|bits| frame::unpack(bits, (side * side) as usize)).collect();
            masks.push(Tensor::f_from_slice(&bytes)?.f_view([rows, i64::from(side), i64::from(side)])?);
        }
        about.check(path)?;
        let dense = Tensor::f_cat(&dense, 0)?;
        let content = if blocks > 0 {
            Content::Activations { tokens: dense, blocks }
        } else {
            Content::Features { pooled: Tensor::f_cat(&pooled, 0)?, dense }
        };
        let note = |name| reader.note(name);
        let origin = Origin {
            weights: note("weights")?,
            model: note("model")?,
            dense: note("dense")?,
            precision: note("precision")?,
        };
        Ok(Self { origin: Some(origin), ..about.with(site, content, Tensor::f_cat(&masks, 0)?) })
    }

    /// Reads `samples.parquet` and `pixels.parquet`; images are brought to `side` pixels a side, masks stay as they are.
    ///
    /// # Errors
    /// Files that are damaged or do not belong together.
    pub fn pixels(site: &str, samples: &Path, pixels: &Path, side: Option<i64>) -> Result<Self> {
        let mut about = About::default();
        let mut reader = frame::Reader::open(samples, None)?;
        while let Some(batch) = reader.next_batch()? {
            about.take(samples, &batch)?;
        }
        about.check(samples)?;
        let mut reader = frame::Reader::open(pixels, None)?;
        let stored: u32 = reader.note("side")?;
        let side = side.unwrap_or(i64::from(stored));
        let (mut images, mut masks, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(batch) = reader.next_batch()? {
            let rows = batch.rows() as i64;
            ids.extend(batch.texts("id")?.into_iter().flatten());
            let area = (stored * stored) as usize;
            let resized =
                |bytes: &[u8]| Rgb { width: stored, height: stored, bytes: bytes.to_vec() }.resized(side as u32).bytes;
            let bytes: Vec<u8> = batch.bytes("image")?.chunks(area * 3).flat_map(resized).collect();
            let image = Tensor::f_from_slice(&bytes)?.f_view([rows, side, side, 3])?.permute([0, 3, 1, 2]);
            images.push(image.contiguous());
            let mask: Vec<u8> = batch.bytes("mask")?.iter().map(|byte| u8::from(*byte > 0)).collect();
            masks.push(Tensor::f_from_slice(&mask)?.f_view([rows, i64::from(stored), i64::from(stored)])?);
        }
        if ids != about.ids {
            return Err(StageError::data(pixels, "it has other samples than its `samples.parquet`"));
        }
        Ok(about.with(site, Content::Pixels(Tensor::f_cat(&images, 0)?), Tensor::f_cat(&masks, 0)?))
    }

    /// Pixels along a side of the masks.
    pub fn mask_side(&self) -> i64 {
        self.masks.size()[1]
    }

    /// The truth of one sample, true for lesion.
    pub fn mask(&self, row: usize) -> Vec<bool> {
        let bytes = Vec::<u8>::try_from(self.masks.get(row as i64).contiguous().view(-1)).expect("a mask is bytes");
        bytes.into_iter().map(|byte| byte > 0).collect()
    }

    /// Rows that train, or those that validate.
    pub fn rows(&self, validate: bool) -> Vec<i64> {
        (0..self.ids.len() as i64).filter(|row| self.validates[*row as usize] == validate).collect()
    }
}

/// What is known of each sample beside its pixels.
#[derive(Default)]
struct About {
    ids: Vec<String>,
    patients: Vec<String>,
    classes: Vec<Option<String>>,
    prompts: Vec<Option<String>>,
    validates: Vec<bool>,
}

impl About {
    fn take(&mut self, path: &Path, batch: &frame::Batch) -> Result<()> {
        let whole = |texts: Vec<Option<String>>| {
            let present = |text: Option<String>| text.ok_or_else(|| StageError::data(path, "a text is missing"));
            texts.into_iter().map(present).collect::<Result<Vec<_>>>()
        };
        self.ids.extend(whole(batch.texts("id")?)?);
        self.patients.extend(whole(batch.texts("patient")?)?);
        self.classes.extend(batch.texts("class")?);
        self.prompts.extend(batch.texts("prompt")?);
        self.validates.extend(whole(batch.texts("split")?)?.iter().map(|split| split == "validation"));
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.ids.is_empty() { Err(StageError::data(path, "it has no rows")) } else { Ok(()) }
    }

    fn with(self, site: &str, content: Content, masks: Tensor) -> SiteData {
        let Self { ids, patients, classes, prompts, validates } = self;
        SiteData { site: site.to_owned(), ids, patients, classes, prompts, validates, content, masks, origin: None }
    }
}
