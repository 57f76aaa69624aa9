//! Names of cgroups as text. A name is any bytes but a slash and NUL; text is what people read and
//! type, so what is not UTF-8 is written `\xff`, a byte each, and no two names look the same.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A name or path as text. Backslashes stay what they are (systemd's `foo\x2dbar`), but where one
/// could be taken for the beginning of an escape of ours, it is written `\x5c`.
pub(crate) fn shown(name: &OsStr) -> Cow<'_, str> {
    let bytes = name.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) if !(0..bytes.len()).any(|at| escape_at(bytes, at).is_some()) => text.into(),
        _ => escape(bytes).into(),
    }
}

/// The path that is shown as `text`.
pub(crate) fn parsed(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut name = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = escape_at(bytes, at);
        name.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { ESCAPE } else { 1 };
    }
    OsString::from_vec(name).into()
}

/// As [`shown`], of a path.
pub(crate) fn shown_path(path: &Path) -> Cow<'_, str> {
    shown(path.as_os_str())
}

/// The length of `\xff`.
const ESCAPE: usize = 4;

/// The byte that the text at this place stands for, if it reads like an escape of ours.
fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let [b'\\', b'x', digits @ ..] = bytes.get(at..at + ESCAPE)? else { return None };
    let lower = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let text = std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(lower))?;
    // Anything else is never escaped.
    u8::from_str_radix(text, 16).ok().filter(|byte| *byte >= 0x80 || *byte == b'\\')
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + ESCAPE);
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        for (offset, character) in chunk.valid().char_indices() {
            // Looked for in all the bytes: nothing that is not UTF-8 can be part of an escape.
            match escape_at(bytes, at + offset) {
                Some(_) => text.push_str("\\x5c"),
                None => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
        at += chunk.valid().len() + chunk.invalid().len();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &[u8]) -> String {
        shown(OsStr::from_bytes(bytes)).into_owned()
    }

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        assert_eq!(text(b"a\xffb"), "a\\xffb");
        assert_eq!(text(b"a\xfeb"), "a\\xfeb");
        assert_eq!(text(b"\xc3"), "\\xc3");
        assert_eq!(text("ä/\u{fffd}".as_bytes()), "ä/\u{fffd}");
    }

    #[test]
    fn backslashes_stay_where_they_cannot_be_mistaken() {
        for name in ["foo\\x2dbar", "dev-disk\\x20a", "\\", "a\\xFF", "\\x8", "\\xf", "\\x"] {
            assert_eq!(text(name.as_bytes()), name);
            assert_eq!(parsed(name), Path::new(name));
        }
        assert_eq!(text(b"a\\xff"), "a\\x5cxff");
        assert_eq!(text(b"\\x5c"), "\\x5cx5c");
        assert_eq!(parsed("a\\xff").as_os_str().as_bytes(), b"a\xff");
    }

    proptest! {
        #[test]
        fn every_name_comes_back(parts in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 1..3),
                prop::sample::select(vec!["\\", "\\x", "5c", "ff", "8", "é"]).prop_map(Vec::from),
            ],
            0..12,
        )) {
            let bytes = parts.concat();
            let name = OsStr::from_bytes(&bytes);
            let back = parsed(&shown(name));
            prop_assert_eq!(back.as_os_str(), name);
        }
    }
}
