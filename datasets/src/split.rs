//! The split of a site into training and validation, by patient: all images of a patient fall on one side.

use std::collections::BTreeSet;

use siteline_cache::Digest;

/// The patients that validate, out of `patients`.
///
/// Patients are ordered by a digest of (seed, patient); the first `share` of them, rounded half up, validate. Where there
/// are two patients or more and `share` is not 0, each side has at least one. A patient's place depends on nothing but
/// the seed and its name, so a further patient moves few others.
pub fn validation_patients<'a>(patients: impl IntoIterator<Item = &'a str>, share: f64, seed: u64) -> BTreeSet<String> {
    let unique: BTreeSet<&str> = patients.into_iter().collect();
    let mut ranked: Vec<(Digest, &str)> = unique
        .into_iter()
        .map(|patient| (Digest::of_bytes(format!("split\0{seed}\0{patient}").as_bytes()), patient))
        .collect();
    ranked.sort();
    let wanted = (share * ranked.len() as f64 + 0.5).floor() as usize;
    let count = match (ranked.len(), share > 0.0) {
        (0 | 1, _) | (_, false) => 0,
        (n, true) => wanted.clamp(1, n - 1),
    };
    ranked.into_iter().take(count).map(|(_, patient)| patient.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_sides_have_patients_and_order_does_not_matter(
            patients in proptest::collection::btree_set("[a-z]{1,4}", 2..40), share in 0.01f64..0.99, seed: u64
        ) {
            let forward = validation_patients(patients.iter().map(String::as_str), share, seed);
            let backward = validation_patients(patients.iter().rev().map(String::as_str), share, seed);
            prop_assert_eq!(&forward, &backward);
            prop_assert!(!forward.is_empty() && forward.len() < patients.len());
        }
    }

    #[test]
    fn one_patient_trains() {
        assert!(validation_patients(["only"], 0.2, 0).is_empty());
        assert!(validation_patients(["a", "b", "c"], 0.0, 0).is_empty());
    }
}
