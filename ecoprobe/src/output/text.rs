//! Text that a terminal is to show and not to act on: cgroup names may hold anything.

use std::borrow::Cow;

/// What a terminal acts on (controls, C1 controls included), and what changes how other characters
/// look or are ordered: bidirectional controls (Trojan Source, CVE-2021-42574) and invisible ones.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `text` with escapes in the place of such characters.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) => printable.push(c),
            c if (c as u32) < 0x80 => printable += &format!("\\x{:02x}", c as u32),
            c => printable += &format!("\\u{{{:x}}}", c as u32),
        }
    }
    Cow::Owned(printable)
}

/// A JSON text in which such characters stand as JSON's own escapes: the same document.
pub(crate) fn printable_json(json: Vec<u8>) -> Vec<u8> {
    // Controls of ASCII are escaped already, or are the white space between tokens.
    let Ok(text) = std::str::from_utf8(&json) else { return json };
    let wanted = |c: char| !c.is_ascii() && is_unsafe(c) || c == '\u{7f}';
    if !text.contains(wanted) {
        return json;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if wanted(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped += &format!("\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str = "a\u{1b}[31m\u{202e}b\u{9b}\u{7f}\u{e0041}ü\u{fffd}";

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_the_rest_is_left_alone() {
        assert_eq!(printable(ODD), "a\\x1b[31m\\u{202e}b\\u{9b}\\x7f\\u{e0041}ü\u{fffd}");
        for plain in ["", "a b", "ジョブ", "naïve", "a\\x1b"] {
            assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
        }
    }

    #[test]
    fn json_means_the_same() {
        let json = serde_json::to_vec(&[ODD]).unwrap();
        let escaped = printable_json(json.clone());
        assert!(
            std::str::from_utf8(&escaped)
                .unwrap()
                .chars()
                .all(|c| c == 'ü' || c == '\u{fffd}' || c.is_ascii_graphic())
        );
        let read = |json: &[u8]| serde_json::from_slice::<Vec<String>>(json).unwrap();
        assert_eq!(read(&escaped), read(&json));
        assert_eq!(printable_json(b"{\n \"a\": 1}".to_vec()), b"{\n \"a\": 1}");
    }
}
