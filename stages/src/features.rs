//! Cached features as tensors.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::{Result, StageError};
use crate::frame;

/// The features of one site.
pub struct FeatureSet {
    /// The site.
    pub site: String,
    /// Sample ids.
    pub ids: Vec<String>,
    /// Patients.
    pub patients: Vec<String>,
    /// Classes, where known.
    pub classes: Vec<Option<String>>,
    /// Whether each sample validates.
    pub validates: Vec<bool>,
    /// Pooled features: (n, d).
    pub pooled: Tensor,
    /// Dense features: (n, N, d).
    pub dense: Tensor,
    /// Masks: (n, S, S), 0 or 1, bytes.
    pub masks: Tensor,
}

impl FeatureSet {
    /// Reads `features.parquet`.
    ///
    /// # Errors
    /// A file that is damaged or has other columns.
    pub fn read(site: &str, path: &Path) -> Result<Self> {
        let mut reader = frame::Reader::open(path, None)?;
        let (grid, d, side): (i64, i64, u32) =
            (reader.note("grid")?, reader.note("embed_dim")?, reader.note("mask_side")?);
        let mut set = Self {
            site: site.to_owned(),
            ids: Vec::new(),
            patients: Vec::new(),
            classes: Vec::new(),
            validates: Vec::new(),
            pooled: Tensor::zeros([0, d], (Kind::Float, tch::Device::Cpu)),
            dense: Tensor::zeros([0, grid * grid, d], (Kind::Float, tch::Device::Cpu)),
            masks: Tensor::zeros([0, i64::from(side), i64::from(side)], (Kind::Uint8, tch::Device::Cpu)),
        };
        let (mut pooled, mut dense, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(batch) = reader.next_batch()? {
            let rows = batch.rows() as i64;
            let whole = |texts: Vec<Option<String>>| {
                texts
                    .into_iter()
                    .map(|t| t.ok_or_else(|| StageError::data(path, "a text is missing")))
                    .collect::<Result<Vec<_>>>()
            };
            set.ids.extend(whole(batch.texts("id")?)?);
            set.patients.extend(whole(batch.texts("patient")?)?);
            set.classes.extend(batch.texts("class")?);
            set.validates.extend(whole(batch.texts("split")?)?.iter().map(|split| split == "validation"));
            // One copy for a whole row group, from the file's buffer into the tensor.
            pooled.push(Tensor::f_from_slice(batch.floats("pooled")?)?.f_view([rows, d])?);
            dense.push(Tensor::f_from_slice(batch.floats("dense")?)?.f_view([rows, grid * grid, d])?);
            let pixels = (side * side) as usize;
            let bytes: Vec<u8> = batch
                .bytes("mask")?
                .chunks(frame::packed_length(side))
                .flat_map(|bits| frame::unpack(bits, pixels))
                .collect();
            masks.push(Tensor::f_from_slice(&bytes)?.f_view([rows, i64::from(side), i64::from(side)])?);
        }
        if set.ids.is_empty() {
            return Err(StageError::data(path, "it has no rows"));
        }
        set.pooled = Tensor::f_cat(&pooled, 0)?;
        set.dense = Tensor::f_cat(&dense, 0)?;
        set.masks = Tensor::f_cat(&masks, 0)?;
        Ok(set)
    }

    /// Dimension of the features.
    pub fn d(&self) -> i64 {
        self.pooled.size()[1]
    }

    /// Pixels along a side of the masks.
    pub fn mask_side(&self) -> i64 {
        self.masks.size()[1]
    }
}
