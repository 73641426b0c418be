//! Draws one phantom: mucosa, lesion, then the confounders in the order in which light and camera would add them.

use rand::Rng;

use super::texture::{Noise, smooth};
use super::{Confounder, LesionClass, PhantomSite, Truth};

type Rgb = [f32; 3];

/// Returns RGB bytes (side x side x 3) and the mask (side x side, 0 or 255).
pub(super) fn draw(
    site: &PhantomSite,
    truth: &Truth,
    mucosa: &mut impl Rng,
    rng: &mut impl Rng,
    side: usize,
) -> (Vec<u8>, Vec<u8>) {
    let mut canvas = Canvas::mucosa(truth, mucosa, rng, side);
    let mask = canvas.lesion(truth, rng);
    if truth.shows(Confounder::NarrowBand) {
        canvas.narrow_band();
    }
    if truth.shows(Confounder::Mucus) {
        canvas.fluid(truth, Confounder::Mucus, rng);
    }
    if truth.shows(Confounder::Blood) {
        canvas.fluid(truth, Confounder::Blood, rng);
    }
    if truth.shows(Confounder::Reflection) {
        canvas.reflections(truth, rng);
    }
    canvas.light(truth, rng);
    canvas.cast(site.colour_cast);
    if truth.shows(Confounder::Blur) {
        canvas.blur();
        canvas.blur();
    }
    if truth.shows(Confounder::Artifacts) {
        canvas.artifacts(rng);
    }
    canvas.noise(site.noise, rng);
    if site.round_field {
        canvas.round_field();
    }
    (canvas.bytes(), mask)
}

struct Canvas {
    side: usize,
    pixels: Vec<Rgb>,
}

impl Canvas {
    /// Walls of the tract: tinted, with vessels, folds and, from far away, the lumen.
    fn mucosa(truth: &Truth, mucosa: &mut impl Rng, rng: &mut impl Rng, side: usize) -> Self {
        let (near, far) = (truth.shows(Confounder::Near), truth.shows(Confounder::Far));
        let tint = [
            mucosa.random_range(0.70..0.82f32),
            mucosa.random_range(0.40..0.50f32),
            mucosa.random_range(0.34..0.44f32),
        ];
        let grain = if near {
            3
        } else if far {
            9
        } else {
            5
        };
        let (coarse, fine) = (Noise::new(mucosa, grain), Noise::new(mucosa, grain * 3));
        let (vessel_a, vessel_b) = (Noise::new(rng, grain), Noise::new(rng, grain));
        let vessel_width = if near { 0.11 } else { 0.05 };
        let vessel_depth = if near {
            0.16
        } else if far {
            0.03
        } else {
            0.08
        };
        let lumen = [rng.random_range(0.2..0.8f32), rng.random_range(0.2..0.8f32)];
        let fold_direction = rng.random_range(0.0..std::f32::consts::TAU);
        let phase = rng.random_range(0.0..std::f32::consts::TAU);
        let mut canvas = Self { side, pixels: vec![[0.0; 3]; side * side] };
        canvas.each(|u, v, pixel| {
            let mut shade = 1.0 + 0.10 * coarse.at(u, v) + 0.05 * fine.at(u, v);
            if far {
                let distance = libm::hypotf(u - lumen[0], v - lumen[1]);
                shade *= 1.0 + 0.13 * libm::sinf(distance * 42.0 + phase);
                shade *= 0.12 + 0.88 * smooth((distance - 0.05) / 0.2);
            } else {
                let along = u * libm::cosf(fold_direction) + v * libm::sinf(fold_direction);
                let folds = if near { 3.0 } else { 14.0 };
                shade *= 1.0 + 0.06 * libm::sinf(along * folds + phase + 1.5 * coarse.at(v, u));
            }
            let ridge = (vessel_a.at(u, v).abs().min(vessel_b.at(u, v).abs()) / vessel_width).min(1.0);
            let vessel = vessel_depth * (1.0 - smooth(ridge));
            *pixel = [tint[0] * shade - 0.4 * vessel, tint[1] * shade - vessel, tint[2] * shade - vessel];
        });
        canvas
    }

    /// Paints the lesion and returns its mask.
    fn lesion(&mut self, truth: &Truth, rng: &mut impl Rng) -> Vec<u8> {
        let outline = Noise::new(rng, 7);
        let rough = Noise::new(rng, 22);
        let patches = Noise::new(rng, 12);
        let light = rng.random_range(0.0..std::f32::consts::TAU);
        let wobble = if truth.class == LesionClass::Tumor { 0.30 } else { 0.10 };
        let mut mask = vec![0u8; self.side * self.side];
        let mut index = 0;
        self.each(|u, v, pixel| {
            let place = Place::of(truth, u, v);
            let r = place.r + wobble * outline.at(u, v);
            if r < 1.0 {
                mask[index] = 255;
            }
            index += 1;
            let relief = (place.dx * libm::cosf(light) + place.dy * libm::sinf(light)) * r.min(1.0);
            paint_lesion(truth.class, r, relief, rough.at(u, v), patches.at(u, v), pixel);
        });
        mask
    }

    /// Narrow-band light is absorbed by red: green and blue remain, tissue looks teal-brown.
    fn narrow_band(&mut self) {
        for p in &mut self.pixels {
            let [r, g, b] = *p;
            *p = [0.30 * r + 0.25 * g, 0.10 * r + 0.75 * g, 0.15 * r + 0.30 * g + 0.60 * b];
        }
    }

    /// Mucus or blood: a blot with a ragged edge, on the lesion or clear of it.
    fn fluid(&mut self, truth: &Truth, kind: Confounder, rng: &mut impl Rng) {
        let [x, y] = place_for(truth, kind, rng);
        let ragged = Noise::new(rng, 9);
        let reach = rng.random_range(0.20..0.28f32);
        let (colour, cover) = match kind {
            Confounder::Mucus => ([0.80, 0.84, 0.52], 0.72),
            _ => ([0.36, 0.03, 0.04], 0.82),
        };
        self.each(|u, v, pixel| {
            let distance = libm::hypotf(u - x, v - y) / reach + 0.55 * ragged.at(u, v);
            mix(pixel, colour, cover * (1.0 - smooth((distance - 0.6) / 0.35)));
        });
    }

    /// A group of saturated spots.
    fn reflections(&mut self, truth: &Truth, rng: &mut impl Rng) {
        let [x, y] = place_for(truth, Confounder::Reflection, rng);
        let spots: Vec<[f32; 3]> = (0..rng.random_range(6..11))
            .map(|_| {
                let (dx, dy) = (rng.random_range(-0.18..0.18f32), rng.random_range(-0.18..0.18f32));
                [x + dx, y + dy, rng.random_range(0.018..0.042f32)]
            })
            .collect();
        self.each(|u, v, pixel| {
            for [sx, sy, radius] in &spots {
                let distance = libm::hypotf((u - sx) * 0.8, v - sy) / radius;
                mix(pixel, [1.0, 1.0, 0.98], 1.0 - smooth((distance - 0.7) / 0.5));
            }
        });
    }

    /// Gain, or a ramp across the image.
    fn light(&mut self, truth: &Truth, rng: &mut impl Rng) {
        let direction = rng.random_range(0.0..std::f32::consts::TAU);
        let strength = rng.random_range(0.9..1.1f32);
        let (bright, dark, uneven) =
            (truth.shows(Confounder::Bright), truth.shows(Confounder::Dark), truth.shows(Confounder::Uneven));
        self.each(|u, v, pixel| {
            let gain = if bright {
                1.45 * strength
            } else if dark {
                0.45 * strength
            } else if uneven {
                let along = (u - 0.5) * libm::cosf(direction) + (v - 0.5) * libm::sinf(direction);
                (0.85 + 1.35 * along * strength).max(0.1)
            } else {
                strength
            };
            *pixel = pixel.map(|c| c * gain);
        });
    }

    fn cast(&mut self, cast: [f32; 3]) {
        for p in &mut self.pixels {
            for (channel, gain) in p.iter_mut().zip(cast) {
                *channel *= gain;
            }
        }
    }

    /// A box blur of about 1/24 of the side, rows then columns.
    fn blur(&mut self) {
        let (n, reach) = (self.side as isize, (self.side / 48).max(1) as isize);
        for horizontal in [true, false] {
            let source = self.pixels.clone();
            for y in 0..n {
                for x in 0..n {
                    let mut sum = [0.0; 3];
                    for step in -reach..=reach {
                        let (sx, sy) = if horizontal { (x + step, y) } else { (x, y + step) };
                        let near = source[(sy.clamp(0, n - 1) * n + sx.clamp(0, n - 1)) as usize];
                        for (total, value) in sum.iter_mut().zip(near) {
                            *total += value;
                        }
                    }
                    self.pixels[(y * n + x) as usize] = sum.map(|total| total / (2 * reach + 1) as f32);
                }
            }
        }
    }

    /// Bands of rows that are shifted sideways and tinted.
    fn artifacts(&mut self, rng: &mut impl Rng) {
        let n = self.side;
        for _ in 0..rng.random_range(4..8) {
            let (top, height) = (rng.random_range(0..n), rng.random_range(1..=(n / 24).max(1)));
            let shift = rng.random_range(n / 10..n / 3);
            let tint = [rng.random_range(0.3..1.5f32), rng.random_range(0.7..1.5f32), rng.random_range(0.7..1.9f32)];
            for y in top..(top + height).min(n) {
                let row = &mut self.pixels[y * n..(y + 1) * n];
                row.rotate_left(shift);
                for p in row {
                    for (channel, gain) in p.iter_mut().zip(tint) {
                        *channel = (*channel * gain + 0.06).min(1.0);
                    }
                }
            }
        }
    }

    fn noise(&mut self, deviation: f32, rng: &mut impl Rng) {
        for channel in self.pixels.iter_mut().flatten() {
            // The sum of three uniform draws is bell-shaped enough, with a standard deviation of 1.
            let bell: f32 = (0..3).map(|_| rng.random_range(-1.0..1.0f32)).sum();
            *channel += deviation * bell;
        }
    }

    fn round_field(&mut self) {
        self.each(|u, v, pixel| {
            let distance = libm::hypotf(u - 0.5, v - 0.5);
            let inside = 1.0 - smooth((distance - 0.50) / 0.02);
            *pixel = pixel.map(|c| c * inside);
        });
    }

    fn each(&mut self, mut paint: impl FnMut(f32, f32, &mut Rgb)) {
        let step = 1.0 / self.side as f32;
        for (index, pixel) in self.pixels.iter_mut().enumerate() {
            let (x, y) = (index % self.side, index / self.side);
            paint((x as f32 + 0.5) * step, (y as f32 + 0.5) * step, pixel);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.pixels.iter().flatten().map(|c| (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect()
    }
}

/// A point relative to the lesion's ellipse.
struct Place {
    /// Offsets along the half axes, 1 at the edge.
    dx: f32,
    dy: f32,
    /// Elliptic distance: 0 at the centre, 1 on the edge.
    r: f32,
}

impl Place {
    fn of(truth: &Truth, u: f32, v: f32) -> Self {
        let (x, y) = (u - truth.centre[0], v - truth.centre[1]);
        let (sin, cos) = (libm::sinf(truth.angle), libm::cosf(truth.angle));
        let (dx, dy) = ((x * cos + y * sin) / truth.radii[0], (y * cos - x * sin) / truth.radii[1]);
        Self { dx, dy, r: libm::hypotf(dx, dy) }
    }
}

/// The look of each class, as a function of the distance `r` from its centre (1 at the edge).
fn paint_lesion(class: LesionClass, r: f32, relief: f32, rough: f32, patches: f32, pixel: &mut Rgb) {
    let inside = |softness: f32| 1.0 - smooth((r - 1.0 + softness) / (2.0 * softness));
    match class {
        LesionClass::Polyp => {
            let shade = 1.0 + 0.34 * relief;
            mix(pixel, [0.93 * shade, 0.52 * shade, 0.55 * shade], 0.85 * inside(0.06));
        }
        LesionClass::Tumor => {
            let shade = 1.0 + 0.45 * rough;
            mix(pixel, [0.47 * shade, 0.22 * shade, 0.33 * shade], 0.9 * inside(0.10));
        }
        LesionClass::Inflammation => {
            let cover = (0.75 + 0.35 * patches).clamp(0.0, 1.0);
            mix(pixel, [0.88, 0.17, 0.13], cover * inside(0.28));
        }
        LesionClass::Nodule => {
            let shade = 1.0 + 0.12 * relief;
            mix(pixel, [0.93 * shade, 0.83 * shade, 0.79 * shade], 0.9 * inside(0.05));
        }
        LesionClass::Cyst => {
            mix(pixel, [0.84, 0.68, 0.26], 0.75 * inside(0.05));
            let rim = 1.0 - smooth((r - 0.90).abs() / 0.13);
            mix(pixel, [0.98, 0.93, 0.68], 0.85 * rim);
        }
    }
}

/// Where a local confounder lies: over the lesion where the truth says so, otherwise clear of it.
fn place_for(truth: &Truth, kind: Confounder, rng: &mut impl Rng) -> [f32; 2] {
    let jitter = [rng.random_range(-0.05..0.05f32), rng.random_range(-0.05..0.05f32)];
    // A fixed number of draws, so that the stream behind this one does not depend on the choice.
    let tries: [[f32; 2]; 8] = std::array::from_fn(|_| [rng.random_range(0.1..0.9), rng.random_range(0.1..0.9)]);
    if truth.on_lesion.contains(&kind) {
        return [truth.centre[0] + jitter[0], truth.centre[1] + jitter[1]];
    }
    let distance = |p: &[f32; 2]| libm::hypotf(p[0] - truth.centre[0], p[1] - truth.centre[1]);
    let clear = truth.radii[0].max(truth.radii[1]) + 0.22;
    *tries
        .iter()
        .find(|p| distance(p) > clear)
        .unwrap_or_else(|| tries.iter().max_by(|a, b| distance(a).total_cmp(&distance(b))).expect("eight tries"))
}

fn mix(pixel: &mut Rgb, colour: Rgb, share: f32) {
    let share = share.clamp(0.0, 1.0);
    for (channel, target) in pixel.iter_mut().zip(colour) {
        *channel += (target - *channel) * share;
    }
}
