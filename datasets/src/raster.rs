//! Images and masks in memory, and their resizing.

use fast_image_resize::images::Image as ResizeImage;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use siteline_cache::Digest;

/// A decoded image: RGB bytes, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// width x height x 3 bytes.
    pub bytes: Vec<u8>,
}

/// A binary mask, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// width x height bytes, 0 or 255.
    pub bytes: Vec<u8>,
}

impl Rgb {
    /// The digest of the pixels and their size, whatever file they came in.
    pub fn digest(&self) -> Digest {
        let mut bytes = format!("{}x{}\0", self.width, self.height).into_bytes();
        bytes.extend_from_slice(&self.bytes);
        Digest::of_bytes(&bytes)
    }

    /// The whole image at `side` x `side` pixels by bicubic interpolation (Catmull-Rom) with the low-pass that shrinking
    /// needs. An image of that size is returned as it is.
    pub fn resized(&self, side: u32) -> Self {
        if (self.width, self.height) == (side, side) {
            return self.clone();
        }
        let alg = ResizeAlg::Convolution(FilterType::CatmullRom);
        let bytes = resize(&self.bytes, (self.width, self.height), side, PixelType::U8x3, alg);
        Self { width: side, height: side, bytes }
    }
}

impl Mask {
    /// The whole mask at `side` x `side` pixels, each the nearest of the original.
    pub fn resized(&self, side: u32) -> Self {
        if (self.width, self.height) == (side, side) {
            return self.clone();
        }
        let bytes = resize(&self.bytes, (self.width, self.height), side, PixelType::U8, ResizeAlg::Nearest);
        Self { width: side, height: side, bytes }
    }
}

fn resize(bytes: &[u8], size: (u32, u32), side: u32, pixel: PixelType, alg: ResizeAlg) -> Vec<u8> {
    let source = fast_image_resize::images::ImageRef::new(size.0, size.1, bytes, pixel)
        .expect("the buffer has the image's size");
    let mut target = ResizeImage::new(side, side, pixel);
    let options = ResizeOptions::new().resize_alg(alg);
    Resizer::new().resize(&source, &mut target, &options).expect("source and target have the same pixels");
    target.into_vec()
}
