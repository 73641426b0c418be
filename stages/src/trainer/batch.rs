//! Batches: what is known of each sample, gathering, and scoring.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use siteline_cache::Digest;
use tch::{Device, Kind, Tensor};

use crate::data::{Content, SiteData};
use crate::error::{Result, StageError};
use crate::loss;
use crate::method::contract::{Batch, Sentence};
use crate::metric::Counts;
use crate::segmenter::Segmenter;

/// What a method wants to know of a site's samples beside their content.
#[derive(Debug, Default)]
pub struct Facts {
    /// Indices of their classes in the dictionary.
    labels: Option<Vec<i64>>,
    /// Their sentences.
    texts: Option<Vec<String>>,
}

impl Facts {
    /// Those of a site to train on. `seed` shuffles sentences where the method wants a control.
    ///
    /// # Errors
    /// A sample without a class that the dictionary knows, or without a text, where the method needs one.
    pub fn of(model: &Segmenter, site: &SiteData, seed: u64) -> Result<Self> {
        Ok(Self { labels: labels(model, site)?, ..Self::to_predict(model, site, seed)? })
    }

    /// Those of a site to predict on: no loss asks for classes.
    ///
    /// # Errors
    /// A sample without a text, where the method needs one.
    pub fn to_predict(model: &Segmenter, site: &SiteData, seed: u64) -> Result<Self> {
        let known = |class: &Option<String>| {
            class.as_ref().and_then(|class| model.config.classes.iter().position(|known| known == class))
        };
        let mut texts = Vec::new();
        for ((id, own), class) in site.ids.iter().zip(&site.prompts).zip(&site.classes) {
            match model.method.sentence(own.as_deref(), known(class)) {
                Sentence::Unread => {}
                Sentence::Text(text) => texts.push(text),
                Sentence::Missing => {
                    return Err(StageError::Request(format!(
                        "`{id}` of the site `{}` has neither a sentence nor a class that the dictionary knows: give the site a `prompt`, or a `class` and the stage a `dictionary`, or ask for empty texts",
                        site.site
                    )));
                }
            }
        }
        if model.method.shuffles_sentences() {
            texts = shuffled(&texts, &format!("sentences\0{seed}\0{}", site.site));
        }
        Ok(Self { labels: None, texts: (!texts.is_empty()).then_some(texts) })
    }
}

/// Each text at another's place: in a ring of random order everyone gives to the next, so that nobody keeps its own.
fn shuffled(texts: &[String], name: &str) -> Vec<String> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.shuffle(&mut ChaCha8Rng::from_seed(*Digest::of_bytes(name.as_bytes()).as_bytes()));
    let mut moved = texts.to_vec();
    for (place, from) in order.iter().enumerate() {
        moved[order[(place + 1) % order.len()]].clone_from(&texts[*from]);
    }
    moved
}

/// Indices of each sample's class in the dictionary; `None` for a model that knows no classes.
fn labels(model: &Segmenter, site: &SiteData) -> Result<Option<Vec<i64>>> {
    let classes = &model.config.classes;
    if !model.method.needs_labels() {
        return Ok(None);
    }
    let of = |(id, class): (&String, &Option<String>)| {
        let class = class.as_ref().ok_or_else(|| {
            StageError::Request(format!(
                "`{id}` of the site `{}` has no class, which the method's losses need: give the site a `class`",
                site.site
            ))
        })?;
        let place = classes.iter().position(|known| known == class).ok_or_else(|| {
            let list = classes.join(", ");
            StageError::Request(format!(
                "the class `{class}` of `{id}` (site `{}`) is not in the dictionary, which has {list}",
                site.site
            ))
        })?;
        Ok(place as i64)
    };
    site.ids.iter().zip(&site.classes).map(of).collect::<Result<Vec<_>>>().map(Some)
}

/// A site's samples as batches are made of them. Handles of tensors, so that another thread can have its own.
pub struct Samples {
    content: Content,
    masks: Tensor,
    facts: Arc<Facts>,
}

impl Samples {
    /// Those of a site.
    pub fn new(site: &SiteData, facts: Facts) -> Self {
        Self { content: site.content.handles(), masks: site.masks.shallow_clone(), facts: Arc::new(facts) }
    }

    /// The same once more.
    pub fn handles(&self) -> Self {
        Self { content: self.content.handles(), masks: self.masks.shallow_clone(), facts: Arc::clone(&self.facts) }
    }

    /// A batch of some of them.
    pub fn batch(&self, rows: &[i64], device: Device) -> Batch {
        let index = Tensor::from_slice(rows);
        let place = |row: &i64| *row as usize;
        let labels = self.facts.labels.as_ref().map(|all| rows.iter().map(|row| all[place(row)]).collect::<Vec<_>>());
        let texts = self.facts.texts.as_ref().map(|all| rows.iter().map(|row| all[place(row)].clone()).collect());
        Batch {
            content: self.content.rows(&index, device),
            masks: self.masks.index_select(0, &index).to_device(device).to_kind(Kind::Int64),
            labels: labels.map(|labels| Tensor::from_slice(&labels).to_device(device)),
            texts: texts.unwrap_or_default(),
            mix: None,
        }
    }
}

/// A batch of `chosen` samples of each site.
pub fn gather(sites: &[Samples], chosen: &[Vec<i64>], device: Device) -> Batch {
    let chosen = sites.iter().zip(chosen).filter(|(_, rows)| !rows.is_empty());
    let parts: Vec<Batch> = chosen.map(|(site, rows)| site.batch(rows, device)).collect();
    let labels: Option<Vec<&Tensor>> = parts.iter().map(|part| part.labels.as_ref()).collect();
    let masks: Vec<&Tensor> = parts.iter().map(|part| &part.masks).collect();
    Batch {
        masks: Tensor::cat(&masks, 0),
        labels: labels.map(|labels| Tensor::cat(&labels, 0)),
        texts: parts.iter().flat_map(|part| part.texts.clone()).collect(),
        content: Content::join(parts.into_iter().map(|part| part.content).collect::<Vec<_>>().as_slice()),
        mix: None,
    }
}

/// What the validation images of the training sites come to.
pub struct Validated {
    /// Mean over sites of the mean Dice of their images.
    pub dice: f64,
    /// Mean over sites of the mean segmentation loss of their images.
    pub loss: f64,
}

/// Scores the validation images; none without any.
pub fn validate(model: &Segmenter, sites: &[SiteData], samples: &[Samples]) -> Option<Validated> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mut dice, mut losses) = (Vec::new(), Vec::new());
    for (site, samples) in sites.iter().zip(samples) {
        let rows = site.rows(true);
        if !rows.is_empty() {
            let (counts, of_images) = score(model, samples, &rows);
            dice.push(mean(&counts.iter().map(Counts::dice).collect::<Vec<_>>()));
            losses.push(mean(&of_images));
        }
    }
    (!dice.is_empty()).then(|| Validated { dice: mean(&dice), loss: mean(&losses) })
}

/// Images that are scored at once.
pub const AT_ONCE: usize = 32;

/// Counts of the model's predictions for some samples of a site, and their segmentation losses, in their order.
fn score(model: &Segmenter, samples: &Samples, rows: &[i64]) -> (Vec<Counts>, Vec<f64>) {
    let mut counts = Vec::with_capacity(rows.len());
    let mut losses = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(AT_ONCE) {
        let batch = samples.batch(chunk, model.store.device());
        let logits = tch::no_grad(|| model.forward(&batch, None).logits);
        let of_images = loss::segmentation_by_image(&logits, &batch.masks).to_kind(Kind::Double).to_device(Device::Cpu);
        losses.extend(Vec::<f64>::try_from(of_images).expect("losses are numbers in one row"));
        let predicted = logits.softmax(1, Kind::Float).select(1, 1).gt(0.5);
        let truth = batch.masks.to_kind(Kind::Bool);
        let sum = |both: Tensor| -> Vec<i64> {
            let sums = both.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64).to_device(Device::Cpu);
            Vec::<i64>::try_from(sums).expect("sums are whole numbers in one row")
        };
        let (missed, outside) = (predicted.logical_not(), truth.logical_not());
        let all = [
            sum(predicted.logical_and(&truth)),
            sum(predicted.logical_and(&outside)),
            sum(missed.logical_and(&truth)),
            sum(missed.logical_and(&outside)),
        ];
        counts.extend((0..chunk.len()).map(|i| Counts {
            tp: all[0][i],
            fp: all[1][i],
            r#fn: all[2][i],
            tn: all[3][i],
        }));
    }
    (counts, losses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_a_shuffled_sentence() {
        let texts: Vec<String> = (0..9).map(|n| n.to_string()).collect();
        for seed in 0..50 {
            let moved = shuffled(&texts, &format!("{seed}"));
            assert!(moved.iter().zip(&texts).all(|(a, b)| a != b), "{moved:?}");
            let mut sorted = moved.clone();
            sorted.sort();
            assert_eq!(sorted, texts);
        }
    }
}
