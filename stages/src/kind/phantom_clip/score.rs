//! How well a CLIP's prompts find the class, each confounder and the lesion's place on phantoms that it never saw.

use std::fmt::Write as _;

use serde::Serialize;
use siteline_datasets::phantom::Confounder;
use tch::{Kind, Tensor};

use super::captions::{CaptionBank, NORMAL_INDEX, domain_words};
use super::pool::Pool;
use crate::error::{Result, StageError};
use crate::kind::context::Ctx;
use crate::model::clip::{Clip, Dense, l2_normalise};

/// What the prompts find.
#[derive(Debug, Serialize)]
pub struct Scores {
    /// Images scored.
    pub images: usize,
    /// Share of images whose class prompt scores highest among the five.
    pub class_accuracy: f64,
    /// Area under the ROC curve of each confounder's prompt, in the dictionary's order.
    pub confounder_auc: Vec<(String, f64)>,
    /// Area under the ROC curve of the best class similarity of a patch, lesion patches against normal ones.
    pub place_auc: f64,
}

/// Scores a CLIP on a pool that it was not trained on.
pub fn score(clip: &Clip, bank: &CaptionBank, fresh: &Pool) -> Result<Scores> {
    let texts = clip.embed_texts(&bank.captions)?;
    let classes = texts.narrow(0, 0, NORMAL_INDEX);
    let (mut images, mut places, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let all: Vec<usize> = (0..fresh.truths.len()).collect();
    tch::no_grad(|| {
        for batch in all.chunks(100) {
            let (pooled, patches) = clip.vision.forward(&fresh.images(batch, texts.device()), Dense::Values, None);
            images.push(l2_normalise(&pooled).matmul(&texts.tr()));
            places.push(l2_normalise(&patches).matmul(&classes.tr()).amax(-1, false).flatten(0, 1));
            labels.push(fresh.patch_labels(batch, texts.device()).flatten(0, 1));
        }
    });
    let similarity = Tensor::cat(&images, 0);
    let found = similarity.narrow(1, 0, NORMAL_INDEX).argmax(1, false);
    let truth: Vec<i64> = fresh.truths.iter().map(|truth| truth.class as i64).collect();
    let right = found.to_device(tch::Device::Cpu).eq_tensor(&Tensor::from_slice(&truth));
    let confounder_auc = Confounder::ALL
        .into_iter()
        .map(|confounder| {
            let scores = values(&similarity.select(1, CaptionBank::index_of(confounder)))?;
            let shown: Vec<bool> = fresh.truths.iter().map(|truth| truth.shows(confounder)).collect();
            Ok((domain_words(confounder).to_owned(), auc(&scores, &shown)))
        })
        .collect::<Result<Vec<_>>>()?;
    let labels = values(&Tensor::cat(&labels, 0).to_kind(Kind::Float))?;
    let (patch_scores, inside): (Vec<f32>, Vec<bool>) = values(&Tensor::cat(&places, 0))?
        .into_iter()
        .zip(labels)
        .filter(|(_, label)| *label >= 0.0)
        .map(|(score, label)| (score, (label as i64) < NORMAL_INDEX))
        .unzip();
    Ok(Scores {
        images: fresh.truths.len(),
        class_accuracy: right.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]),
        confounder_auc,
        place_auc: auc(&patch_scores, &inside),
    })
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(tensor.to_device(tch::Device::Cpu).contiguous())?)
}

/// Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.
pub fn auc(scores: &[f32], positive: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut rank_sum, mut start) = (0.0, 0);
    while start < order.len() {
        let end = (start..order.len()).find(|i| scores[order[*i]] != scores[order[start]]).unwrap_or(order.len());
        let mean_rank = (start + 1 + end) as f64 / 2.0;
        rank_sum += mean_rank * order[start..end].iter().filter(|i| positive[**i]).count() as f64;
        start = end;
    }
    let ups = positive.iter().filter(|p| **p).count() as f64;
    let downs = scores.len() as f64 - ups;
    (rank_sum - ups * (ups + 1.0) / 2.0) / (ups * downs)
}

/// Writes `scores.json` and `scores.md`, and keeps the figures as metrics.
pub fn write(ctx: &Ctx, scores: &Scores) -> Result<()> {
    let mut table = String::from("| text prompt finds | measure | value |\n|---|---|---|\n");
    let mut row = |what: &str, measure: &str, value: f64| {
        ctx.metric(&format!("{what} {measure}"), value);
        writeln!(table, "| {what} | {measure} | {value:.3} |").expect("writing to a string");
    };
    row("lesion class", "accuracy of 5", scores.class_accuracy);
    row("lesion place", "AUC", scores.place_auc);
    for (words, value) in &scores.confounder_auc {
        row(words, "AUC", *value);
    }
    let path = ctx.output("scores.md");
    std::fs::write(&path, table).map_err(StageError::io(&path))?;
    let path = ctx.output("scores.json");
    let json = serde_json::to_string_pretty(scores).expect("scores are JSON");
    std::fs::write(&path, json + "\n").map_err(StageError::io(&path))
}

#[cfg(test)]
mod tests {
    use super::auc;

    #[test]
    fn auc_counts_pairs_and_halves_ties() {
        assert_eq!(auc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), 0.75);
        assert_eq!(auc(&[1.0, 1.0], &[true, false]), 0.5);
    }
}
