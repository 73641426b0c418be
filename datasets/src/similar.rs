//! Images that look alike: neighbouring frames of a video, or one picture in two collections. They must not fall on both sides of a
//! split, so they count as one patient's.

use std::collections::BTreeMap;

use image::RgbImage;
use image_hasher::{HashAlg, HasherConfig};

use crate::raster::Rgb;

/// The perceptual hash of an image: gradients of its low frequencies, 64 bits.
pub fn hash(image: &Rgb) -> u64 {
    let hasher = HasherConfig::with_bytes_type::<[u8; 8]>().hash_alg(HashAlg::Gradient).hash_size(8, 8).preproc_dct();
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

    fn picture(shift: usize, noise: u8) -> Rgb {
        let pixel = |place: usize| {
            let (x, y) = (place % 64 + shift, place / 64);
            let value = (127.0 + 60.0 * (x as f64 / 9.0).sin() + 60.0 * (y as f64 / 13.0).cos()) as u8;
            [value, value / 2, value.wrapping_add(noise * (place % 3) as u8)]
        };
        Rgb { width: 64, height: 64, bytes: (0..64 * 64).flat_map(pixel).collect() }
    }

    #[test]
    fn a_neighbouring_frame_is_near_and_another_picture_is_not() {
        let (first, next, other) = (hash(&picture(0, 0)), hash(&picture(1, 2)), hash(&picture(29, 0)));
        assert!((first ^ next).count_ones() <= 6, "{}", (first ^ next).count_ones());
        assert!((first ^ other).count_ones() > 12, "{}", (first ^ other).count_ones());
    }

    #[test]
    fn groups_join_through_likeness_and_through_patients() {
        let images = [("c", 0b0000), ("b", 0b0001), ("a", 0b1111_0000), ("b", 0b1111_1111_0000_0000), ("d", 1 << 40)];
        assert_eq!(patients(&images, 1), ["b", "b", "a", "b", "d"]);
        assert_eq!(patients(&images, 0), ["c", "b", "a", "b", "d"]);
    }
}
