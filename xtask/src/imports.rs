//! The one-way street of `docs/imports.md`: which folder of ecoprobe may import which, what they import
//! in fact, and whether the two agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr as _;

use anyhow::{Context as _, Result, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::root;

/// From left to right: each may import what stands beside it, and itself. `main` is the binary, with what
/// the library's root shows it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("event", &["base"]),
    ("host", &["base", "event"]),
    ("probe", &["base", "event", "host"]),
    ("meter", &["base", "event", "host"]),
    ("workload", &["base", "event", "host"]),
    ("collector", &["base", "event", "host", "probe", "meter", "workload"]),
    ("carbon", &["base"]),
    ("energy", &["base", "event"]),
    ("recording", &["base", "event"]),
    ("view", &["base", "event", "carbon", "energy"]),
    ("output", &["base", "event", "host", "view"]),
    ("pipeline", &["base", "event", "recording", "energy", "view", "output"]),
    ("cli", &["base", "event", "meter", "output"]),
    ("config", &["base", "event", "host", "collector", "output", "cli"]),
    (
        "command",
        &[
            "base",
            "event",
            "host",
            "probe",
            "meter",
            "workload",
            "collector",
            "energy",
            "recording",
            "output",
            "pipeline",
            "config",
        ],
    ),
    ("main", &["base", "host", "output", "cli", "config", "command"]),
    // For the project's own tests and benchmarks.
    (
        "door",
        &[
            "base",
            "event",
            "host",
            "probe",
            "meter",
            "workload",
            "collector",
            "energy",
            "recording",
            "view",
            "output",
            "cli",
            "config",
            "command",
        ],
    ),
];

const DOCUMENT: &str = "docs/imports.md";

type Imports = BTreeMap<String, BTreeSet<String>>;

/// Writes what is imported to the document, or fails where that differs from it or is not allowed.
pub(crate) fn run(check: bool) -> Result<()> {
    let imports = read(&root().join("ecoprobe/src"))?;
    let faults = faults(&imports);
    ensure!(faults.is_empty(), "imports against the street:\n  {}", faults.join("\n  "));
    let (path, text) = (root().join(DOCUMENT), document(&imports));
    if check {
        let committed = fs::read_to_string(&path).with_context(|| DOCUMENT.to_owned())?;
        ensure!(committed == text, "{DOCUMENT} is not what is imported; run `cargo xtask imports`");
        return Ok(());
    }
    fs::write(&path, text).with_context(|| DOCUMENT.to_owned())
}

fn allowed(from: &str) -> Option<&'static [&'static str]> {
    ALLOWED.iter().find(|(module, _)| *module == from).map(|(_, allowed)| *allowed)
}

/// A sentence for each import that is not allowed, and for each circle.
fn faults(imports: &Imports) -> Vec<String> {
    let mut faults = Vec::new();
    for (from, to) in imports {
        let Some(allowed) = allowed(from) else {
            faults.push(format!("{from}/ has no place in the street (xtask/src/imports.rs)"));
            continue;
        };
        let wrong = to.iter().filter(|to| !allowed.contains(&to.as_str()));
        faults.extend(wrong.map(|to| format!("{from} imports {to}")));
    }
    // What a module may import stands left of it: no circle can close.
    for (index, (from, allowed)) in ALLOWED.iter().enumerate() {
        let left: Vec<&str> = ALLOWED[..index].iter().map(|(module, _)| *module).collect();
        let right = allowed.iter().filter(|module| !left.contains(module));
        faults.extend(right.map(|to| format!("{from} may import {to}, which stands right of it")));
    }
    faults
}

fn document(imports: &Imports) -> String {
    let mut text = String::from(
        "# What imports what\n\nMade by `cargo xtask imports`; `cargo xtask test` checks it. Data moves \
         from left to right, so each\nline imports only what stands above it. Tests are left out.\n\n",
    );
    let width = ALLOWED.iter().map(|(module, _)| module.len()).max().unwrap_or(0);
    for (module, _) in ALLOWED {
        let Some(to) = imports.get(*module) else { continue };
        let ordered =
            ALLOWED.iter().map(|(module, _)| *module).filter(|module| to.contains(*module));
        let ordered: Vec<&str> = ordered.collect();
        let line = format!("    {module:width$}  <-  {}", ordered.join(" "));
        text += line.trim_end_matches([' ', '<', '-']);
        text.push('\n');
    }
    text
}

/// What each top-level module under `source` imports.
fn read(source: &Path) -> Result<Imports> {
    let mut imports = Imports::new();
    let mut files = BTreeMap::new();
    let mut pending = vec![source.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let tokens = TokenStream::from_str(&text)
                    .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
                files.insert(module(source, &path), tokens);
            }
        }
    }
    // Tests may look at everything.
    let tests = files.iter().flat_map(|(module, tokens)| test_modules(module, tokens.clone()));
    let tests: Vec<Vec<String>> = tests.collect();
    for (module, tokens) in files {
        if tests.iter().any(|test| module.starts_with(test)) {
            continue;
        }
        let first = module.first().map_or("main", String::as_str);
        let found = imports.entry(first.to_owned()).or_default();
        collect(tokens, &module, found);
        found.remove(first);
    }
    // Its other names come from the library's root.
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    if let Some(main) = imports.get_mut("main") {
        main.retain(|name| modules.contains(name));
    }
    Ok(imports)
}

/// The path of the module in a file; empty for the crate's root.
fn module(source: &Path, path: &Path) -> Vec<String> {
    let relative = path.strip_prefix(source).unwrap_or(path).with_extension("");
    let name = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    let mut module: Vec<String> = relative.iter().map(name).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// Adds the top-level modules that paths in `tokens` lead to.
fn collect(tokens: TokenStream, module: &[String], found: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens, at) {
            at = after_item(&tokens, at + 2);
            continue;
        }
        match &tokens[at] {
            TokenTree::Group(group) => collect(group.stream(), module, found),
            TokenTree::Ident(ident) => {
                let ident = ident.to_string();
                let in_binary = module == ["main"];
                let at_root = ident == "crate" || (in_binary && ident == "ecoprobe");
                if at_root && is_path(&tokens, at + 1) {
                    heads(&tokens, at + 3, found);
                } else if ident == "super" && !follows_path(&tokens, at) {
                    let ups = ups(&tokens, at);
                    if ups >= module.len() {
                        heads(&tokens, at + 3 * ups, found);
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The first segments of a path, or of each path of a list.
fn heads(tokens: &[TokenTree], at: usize, found: &mut BTreeSet<String>) {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => {
            found.insert(ident.to_string());
        }
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let list: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut head = true;
            for token in &list {
                match token {
                    TokenTree::Ident(ident) if head => {
                        found.insert(ident.to_string());
                        head = false;
                    }
                    TokenTree::Punct(punct) if punct.as_char() == ',' => head = true,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether `::` stands there.
fn is_path(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens, at, ':') && is_punct(tokens, at + 1, ':')
}

fn follows_path(tokens: &[TokenTree], at: usize) -> bool {
    at >= 2 && is_path(tokens, at - 2)
}

/// How many `super::` stand in a row.
fn ups(tokens: &[TokenTree], at: usize) -> usize {
    let is_up = |at: usize| {
        matches!(tokens.get(at), Some(TokenTree::Ident(ident)) if *ident == "super")
            && is_path(tokens, at + 1)
    };
    (0..).take_while(|up| is_up(at + 3 * up)).count()
}

/// The modules with a file of their own that are declared for tests only.
fn test_modules(module: &[String], tokens: TokenStream) -> Vec<Vec<String>> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    for at in (0..tokens.len()).filter(|at| is_test_attribute(&tokens, *at)) {
        let end = after_item(&tokens, at + 2);
        if let [.., TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(_)] =
            &tokens[at..end]
            && *word == "mod"
        {
            found.push(module.iter().cloned().chain([name.to_string()]).collect());
        }
    }
    found
}

/// `#[cfg(test)]`.
fn is_test_attribute(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens, at, '#')
        && matches!(tokens.get(at + 1), Some(TokenTree::Group(group))
            if group.to_string().replace(' ', "") == "[cfg(test)]")
}

/// Past the item that begins there: its braces, or its semicolon.
fn after_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
            TokenTree::Punct(punct) if punct.as_char() == ';' => break,
            _ => {}
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(module: &[&str], text: &str) -> Vec<String> {
        let module: Vec<String> = module.iter().map(|part| (*part).to_owned()).collect();
        let mut found = BTreeSet::new();
        collect(TokenStream::from_str(text).expect("Rust"), &module, &mut found);
        found.into_iter().collect()
    }

    #[test]
    fn every_way_to_name_a_module_is_seen() {
        let text = "use crate::a::x; pub(crate) use crate::{b, c::{d, e}, f as g};
            // crate::comment
            fn f() { let _ = \"crate::text\"; crate::h::f(); println!(\"{}\", crate::i::X); }
            #[cfg(test)] mod tests { use crate::test; }
            #[cfg(test)] use crate::test_too;
            use crate::j;";
        assert_eq!(imports(&["m"], text), ["a", "b", "c", "f", "h", "i", "j"]);
        // One `super` of a top-level module is the root; of one below it is not.
        assert_eq!(imports(&["m"], "use super::a; use super::super::b;"), ["a", "b"]);
        assert_eq!(imports(&["m", "n"], "use super::a; use super::super::b::c;"), ["b"]);
        assert_eq!(imports(&["main"], "use ecoprobe::{a, b::c};"), ["a", "b"]);
    }

    #[test]
    fn files_of_tests_are_told_from_others() {
        let text = "#[cfg(test)] mod tests; #[cfg(test)] pub(super) mod fixtures; mod grid;
            #[cfg(test)] mod inside { mod deeper; } #[cfg(test)] use a::b;";
        let tokens = TokenStream::from_str(text).expect("Rust");
        let found = test_modules(&["m".to_owned()], tokens);
        assert_eq!(found, [["m", "tests"], ["m", "fixtures"]]);
    }

    #[test]
    fn what_is_imported_is_allowed_and_documented() {
        run(true).expect("the street");
    }

    #[test]
    fn an_arrow_to_the_right_is_a_fault() {
        let one = |from: &str, to: &str| {
            Imports::from([(from.to_owned(), BTreeSet::from([to.to_owned()]))])
        };
        assert!(faults(&one("view", "energy")).is_empty());
        assert_eq!(faults(&one("energy", "view")), ["energy imports view"]);
        assert!(faults(&one("unheard", "base"))[0].contains("no place"));
    }
}
