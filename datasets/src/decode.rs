//! Files to pixels: any of PNG, JPEG, TIFF, BMP and GIF, told by content, not by name.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, GenericImageView, ImageFormat, ImageReader};

use crate::DatasetError;
use crate::raster::{Mask, Rgb};

/// Images with a shorter side carry nothing that could be segmented.
pub const SMALLEST_SIDE: u32 = 8;
/// Larger images are refused before memory is taken for them.
pub const LARGEST_PIXELS: u64 = 100_000_000;
/// Masks whose largest value is at most this hold class indices.
pub const LARGEST_INDEX: u16 = 31;

fn decode(path: &Path) -> Result<(DynamicImage, ImageFormat), DatasetError> {
    let bad = |reason: String| DatasetError::Content { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    if bytes.is_empty() {
        return Err(bad("the file is empty".into()));
    }
    let reader = || ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
    let sized = reader().map_err(|e| bad(e.to_string()))?;
    let format =
        sized.format().ok_or_else(|| bad("it is no image of a known format (PNG, JPEG, TIFF, BMP, GIF)".into()))?;
    let (width, height) = sized.into_dimensions().map_err(|e| bad(format!("its header cannot be read: {e}")))?;
    if u64::from(width) * u64::from(height) > LARGEST_PIXELS {
        return Err(bad(format!("its header says {width} x {height} pixels; more than {LARGEST_PIXELS} are refused")));
    }
    if width.min(height) < SMALLEST_SIDE {
        return Err(bad(format!("it has {width} x {height} pixels; at least {SMALLEST_SIDE} a side are needed")));
    }
    let image = reader()
        .map_err(|e| bad(e.to_string()))?
        .decode()
        .map_err(|e| bad(format!("it cannot be decoded, so it may be cut short or damaged: {e}")))?;
    Ok((image, format))
}

/// Reads an image as RGB. Transparency is dropped, grey becomes three equal channels, 16 bits become 8.
///
/// # Errors
/// A file that is empty, cut short, too small, too large, or no image.
pub fn read_image(path: &Path) -> Result<Rgb, DatasetError> {
    let (image, _) = decode(path)?;
    let (width, height) = image.dimensions();
    Ok(Rgb { width, height, bytes: image.into_rgb8().into_raw() })
}

/// Reads a mask and makes it binary.
///
/// The rule: of each pixel the largest colour channel counts. If no value of the mask is above [`LARGEST_INDEX`], it holds
/// class indices, and everything but 0 is foreground. Otherwise a pixel is foreground above half of the mask's largest
/// value. So 0/1, 0/255, 0/100, coloured, palette, class-index, 16-bit and JPEG masks all come out as meant.
///
/// # Errors
/// As [`read_image`].
pub fn read_mask(path: &Path) -> Result<Mask, DatasetError> {
    let (image, _) = decode(path)?;
    let (width, height) = image.dimensions();
    let deep = matches!(
        image,
        DynamicImage::ImageLuma16(_)
            | DynamicImage::ImageLumaA16(_)
            | DynamicImage::ImageRgb16(_)
            | DynamicImage::ImageRgba16(_)
    );
    let values: Vec<u16> = if deep {
        image.into_rgb16().pixels().map(|p| p.0.into_iter().max().unwrap_or(0)).collect()
    } else {
        image.into_rgb8().pixels().map(|p| u16::from(p.0.into_iter().max().unwrap_or(0))).collect()
    };
    let largest = values.iter().copied().max().unwrap_or(0);
    let from = if largest <= LARGEST_INDEX { 1 } else { largest / 2 + 1 };
    Ok(Mask { width, height, bytes: values.into_iter().map(|v| if v >= from { 255 } else { 0 }).collect() })
}

/// Writes RGB bytes or a mask as a PNG file.
///
/// # Errors
/// A file that cannot be written.
pub fn write_png(path: &Path, side: (u32, u32), bytes: &[u8], grey: bool) -> Result<(), DatasetError> {
    let color = if grey { image::ExtendedColorType::L8 } else { image::ExtendedColorType::Rgb8 };
    image::save_buffer_with_format(path, bytes, side.0, side.1, color, ImageFormat::Png)
        .map_err(|e| DatasetError::Io { path: path.to_owned(), source: std::io::Error::other(e) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey16(values: &[u16]) -> DynamicImage {
        let buffer =
            image::ImageBuffer::from_fn(8, 8, |x, y| image::Luma([values[((x + 8 * y) as usize) % values.len()]]));
        DynamicImage::ImageLuma16(buffer)
    }

    fn mask_of(image: &DynamicImage, name: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        image.save(&path).unwrap();
        read_mask(&path).unwrap().bytes[..2].to_vec()
    }

    #[test]
    fn masks_of_any_common_encoding_come_out_binary() {
        let grey = |low: u8, high: u8| {
            DynamicImage::ImageLuma8(image::ImageBuffer::from_fn(8, 8, |x, _| {
                image::Luma([if x % 2 == 0 { low } else { high }])
            }))
        };
        let colour = |rgb: [u8; 3]| {
            DynamicImage::ImageRgb8(image::ImageBuffer::from_fn(8, 8, |x, _| {
                image::Rgb(if x % 2 == 0 { [0; 3] } else { rgb })
            }))
        };
        for (image, name) in [
            (grey(0, 255), "a.png"),
            (grey(0, 1), "b.png"),
            (grey(0, 2), "c.bmp"),
            (grey(12, 240), "d.tiff"),
            (grey(0, 64), "j.png"),
            (grey16(&[0, 4_095]), "k.png"),
            (colour([0, 255, 0]), "e.png"),
            (colour([128, 0, 0]), "f.gif"),
            (grey16(&[0, 65_535]), "g.png"),
            (grey16(&[0, 1]), "h.png"),
            (grey16(&[0, 255]), "i.tiff"),
        ] {
            assert_eq!(mask_of(&image, name), [0, 255], "{name}");
        }
    }

    #[test]
    fn bad_files_are_named_and_described() {
        let dir = tempfile::tempdir().unwrap();
        let message = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let text = read_image(&path).unwrap_err().to_string();
            assert!(text.contains(name), "{text}");
            text
        };
        assert!(message("empty.png", b"").contains("empty"));
        assert!(message("text.jpg", b"hello, this is no image").contains("no image of a known format"));
        let mut png = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(64, 64).write_to(&mut png, ImageFormat::Png).unwrap();
        let png = png.into_inner();
        assert!(message("cut.png", &png[..png.len() / 2]).contains("cut short"));
        let mut dot = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(1, 1).write_to(&mut dot, ImageFormat::Png).unwrap();
        assert!(message("dot.png", dot.get_ref()).contains("1 x 1"));
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge.png");
        std::fs::write(&path, png_header(60_000, 60_000)).unwrap();
        let text = read_image(&path).unwrap_err().to_string();
        assert!(text.contains("60000 x 60000"), "{text}");
    }

    /// A PNG signature and header chunk and no data.
    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 2, 0, 0, 0]);
        let mut crc = u32::MAX;
        for byte in &chunk {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        bytes.extend(&chunk);
        bytes.extend((!crc).to_be_bytes());
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        bytes
    }

    #[test]
    fn resizing_keeps_masks_binary_and_flat_images_flat() {
        let mask = Mask { width: 16, height: 8, bytes: (0..128).map(|i| if i % 3 == 0 { 255 } else { 0 }).collect() };
        assert!(mask.resized(24).bytes.iter().all(|b| *b == 0 || *b == 255));
        let flat = Rgb { width: 30, height: 20, bytes: vec![77; 1800] };
        assert!(flat.resized(12).bytes.iter().all(|b| *b == 77));
    }
}
