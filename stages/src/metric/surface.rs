//! Distances between the outlines of two masks, in pixels of the size at which they are compared.
//!
//! An outline is the mask without its erosion by a cross; beyond the image's edge is background. HD95 and ASSD follow MedPy 0.5.2:
//! both directed lists of distances joined, their 95th percentile (linear interpolation) and their mean. NSD follows MONAI
//! 1.6: the share of both outlines within a tolerance of the other. Other libraries differ by several pixels on the
//! same masks, which is why the definition is part of every column's name.

/// Distances of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surface {
    /// 95th percentile of the joined directed distances; infinite where one mask is empty.
    pub hd95: f64,
    /// Mean of the joined directed distances; infinite where one mask is empty.
    pub assd: f64,
    /// Share of both outlines within the tolerance of the other; 0 where one mask is empty.
    pub nsd: f64,
}

/// Compares two masks of `width` pixels a row. Two empty masks agree: distances 0, share 1.
pub fn compare(predicted: &[bool], truth: &[bool], width: usize, tolerance: f64) -> Surface {
    let (a, b) = (outline(predicted, width), outline(truth, width));
    match (a.is_empty(), b.is_empty()) {
        (true, true) => return Surface { hd95: 0.0, assd: 0.0, nsd: 1.0 },
        (false, false) => {}
        _ => return Surface { hd95: f64::INFINITY, assd: f64::INFINITY, nsd: 0.0 },
    }
    let mut joined: Vec<f64> = distances(&a, &b).chain(distances(&b, &a)).collect();
    let within = joined.iter().filter(|distance| **distance <= tolerance).count();
    joined.sort_by(f64::total_cmp);
    let count = joined.len() as f64;
    Surface { hd95: percentile(&joined, 0.95), assd: joined.iter().sum::<f64>() / count, nsd: within as f64 / count }
}

/// The pixels of a mask that touch, by an edge, a pixel outside it.
pub fn outline(mask: &[bool], width: usize) -> Vec<(i32, i32)> {
    let height = mask.len() / width.max(1);
    let inside = |x: i64, y: i64| {
        let within = x >= 0 && y >= 0 && x < width as i64 && y < height as i64;
        within && mask[y as usize * width + x as usize]
    };
    let mut found = Vec::new();
    for (place, _) in mask.iter().enumerate().filter(|(_, lesion)| **lesion) {
        let (x, y) = ((place % width) as i64, (place / width) as i64);
        if !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1)) {
            found.push((x as i32, y as i32));
        }
    }
    found
}

/// From each of `from` to the nearest of `to`.
fn distances(from: &[(i32, i32)], to: &[(i32, i32)]) -> impl Iterator<Item = f64> {
    let nearest = |a: &(i32, i32)| {
        let squares = to.iter().map(|b| i64::from(a.0 - b.0).pow(2) + i64::from(a.1 - b.1).pow(2));
        (squares.min().unwrap_or(0) as f64).sqrt()
    };
    from.iter().map(nearest)
}

/// Of sorted values, between neighbours by linear interpolation, as NumPy's default.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_masks_follow_their_rules() {
        let (nothing, all) = (vec![false; 16], vec![true; 16]);
        assert_eq!(compare(&nothing, &nothing, 4, 2.0), Surface { hd95: 0.0, assd: 0.0, nsd: 1.0 });
        assert_eq!(compare(&nothing, &all, 4, 2.0).nsd, 0.0);
        assert!(compare(&all, &nothing, 4, 2.0).hd95.is_infinite());
        assert_eq!(compare(&all, &all, 4, 2.0), Surface { hd95: 0.0, assd: 0.0, nsd: 1.0 });
    }

    proptest! {
        #[test]
        fn distances_are_symmetric_and_the_share_grows_with_the_tolerance(
            a in proptest::collection::vec(any::<bool>(), 64),
            b in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let (one, other) = (compare(&a, &b, 8, 1.0), compare(&b, &a, 8, 1.0));
            prop_assert_eq!(one.hd95, other.hd95);
            prop_assert!((one.nsd - other.nsd).abs() < 1e-12);
            prop_assert!(compare(&a, &b, 8, 2.0).nsd >= one.nsd);
        }

        #[test]
        fn no_percentile_of_the_distances_is_beyond_the_largest(
            a in proptest::collection::vec(any::<bool>(), 64),
            b in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let found = compare(&a, &b, 8, 1.0);
            let (a, b) = (outline(&a, 8), outline(&b, 8));
            prop_assume!(!a.is_empty() && !b.is_empty());
            // Hausdorff's distance by its definition.
            let apart = |p: &(i32, i32), q: &(i32, i32)| f64::from((p.0 - q.0).pow(2) + (p.1 - q.1).pow(2)).sqrt();
            let to = |p: &(i32, i32), other: &[(i32, i32)]| other.iter().map(|q| apart(p, q)).fold(f64::INFINITY, f64::min);
            let farthest = |from: &[(i32, i32)], other: &[(i32, i32)]| from.iter().map(|p| to(p, other)).fold(0.0, f64::max);
            let hausdorff = farthest(&a, &b).max(farthest(&b, &a));
            prop_assert!(found.hd95 <= hausdorff && found.assd <= hausdorff);
        }

        #[test]
        fn neither_a_shift_nor_a_mirror_changes_what_is_between_two_masks(
            a in proptest::collection::vec(any::<bool>(), 64),
            b in proptest::collection::vec(any::<bool>(), 64),
            right in 0usize..5,
            down in 0usize..5,
        ) {
            // In the middle of background, whose outline no border cuts.
            let placed = |mask: &[bool], right: usize, down: usize, mirrored: bool| {
                let mut all = vec![false; 14 * 14];
                for (place, lesion) in mask.iter().enumerate() {
                    let (x, y) = (place % 8, place / 8);
                    let x = if mirrored { 7 - x } else { x };
                    all[(1 + down + y) * 14 + 1 + right + x] = *lesion;
                }
                all
            };
            let at = |right, down, mirrored| compare(&placed(&a, right, down, mirrored), &placed(&b, right, down, mirrored), 14, 1.5);
            let (plain, other) = (at(0, 0, false), at(right, down, true));
            prop_assert_eq!((plain.hd95, plain.nsd), (other.hd95, other.nsd));
            // Its terms are added in another order.
            prop_assert!(plain.assd == other.assd || (plain.assd - other.assd).abs() < 1e-12);
        }
    }
}
