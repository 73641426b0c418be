//! Images that look alike: neighbouring frames of a video, or one picture in two collections. They must not fall on both sides of a
//! split, so they count as one patient's.

use std::collections::BTreeMap;

use image::RgbImage;
use image_hasher::{HashAlg, HasherConfig};

use crate::raster::Rgb;

/// The perceptual hash of an image: which of its low frequencies are above their median, 64 bits.
pub fn hash(image: &Rgb) -> u64 {
    let hasher = HasherConfig::with_bytes_type::<[u8; 8]>().hash_alg(HashAlg::Median).hash_size(8, 8).preproc_dct();
    // An image's bytes are as many as its sides say.
    let picture = RgbImage::from_raw(image.width, image.height, image.bytes.clone()).unwrap_or_default();
    let hash = hasher.to_hasher().hash_image(&picture);
    hash.as_bytes().iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// The patient of each image once all that look alike, and all of one patient, are one's: the first by name of each group.
pub fn patients(images: &[(&str, u64)], distance: u32) -> Vec<String> {
    let mut leaders: Vec<usize> = (0..images.len()).collect();
    fn leader(leaders: &mut [usize], mut at: usize) -> usize {
        while leaders[at] != at {
            leaders[at] = leaders[leaders[at]];
            at = leaders[at];
        }
        at
    }
    for (place, (patient, hash)) in images.iter().enumerate() {
        for (other, (same, near)) in images[..place].iter().enumerate() {
            if patient == same || (hash ^ near).count_ones() <= distance {
                let (a, b) = (leader(&mut leaders, place), leader(&mut leaders, other));
                leaders[a.max(b)] = a.min(b);
            }
        }
    }
    let mut names: BTreeMap<usize, &str> = BTreeMap::new();
    for (place, (patient, _)) in images.iter().enumerate() {
        let name = names.entry(leader(&mut leaders, place)).or_insert(patient);
        *name = (*name).min(patient);
    }
    (0..images.len()).map(|place| names[&leader(&mut leaders, place)].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bright spot and a dark one on a slope.
    fn picture(x0: f64, y0: f64, noise: u8) -> Rgb {
        let pixel = |place: usize| {
            let (x, y) = ((place % 96) as f64, (place / 96) as f64);
            let spot = |x0: f64, y0: f64| (-((x - x0).powi(2) + (y - y0).powi(2)) / 500.0).exp();
            let value = 90.0 + 0.4 * x + 0.3 * y + 90.0 * spot(x0, y0) - 80.0 * spot(96.0 - y0, x0);
            [value as u8, value as u8 / 2, value as u8 - noise * (place % 3) as u8]
        };
        Rgb { width: 96, height: 96, bytes: (0..96 * 96).flat_map(pixel).collect() }
    }

    #[test]
    fn a_neighbouring_frame_is_near_and_another_picture_is_not() {
        let bits = |a: Rgb, b: Rgb| (hash(&a) ^ hash(&b)).count_ones();
        let (near, far) = (
            bits(picture(30.0, 40.0, 0), picture(31.0, 40.0, 2)),
            bits(picture(30.0, 40.0, 0), picture(70.0, 20.0, 0)),
        );
        assert!(near < 16 && far > 24, "{near}, {far}");
    }

    #[test]
    fn groups_join_through_likeness_and_through_patients() {
        let images =
            [("c", 0b0000), ("b", 0b0001), ("a", 0b1111_0000), ("b", 0b1111_1111_0000_0000), ("d", 0b111 << 40)];
        assert_eq!(patients(&images, 1), ["b", "b", "a", "b", "d"]);
        assert_eq!(patients(&images, 0), ["c", "b", "a", "b", "d"]);
    }
}
