//! What `docs/asvs.md` promises.

use std::{collections::HashSet, fs, path::Path};

/// The tests in the sources under a directory.
fn tests_under(dir: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_under(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some((_, name)) = line.split_once("fn ")
                    && std::mem::take(&mut is_test)
                {
                    found.insert(name.split('(').next().unwrap().to_owned());
                }
            }
        }
    }
}

/// The cells of the tables.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = HashSet::new();
    tests_under(&root.join("tests"), &mut found);
    tests_under(&root.join("src"), &mut found);
    let text = fs::read_to_string(root.join("docs/asvs.md")).unwrap();
    let mut named = 0;
    for row in rows(&text) {
        let cell = row.last().unwrap();
        for test in cell.split('`').skip(1).step_by(2) {
            assert!(found.contains(test), "docs/asvs.md names {test}, which is no test");
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
    assert!(found.contains("every_test_that_is_named_exists") && text.contains("named_exists"));
}

#[test]
fn every_item_is_answered_and_what_is_done_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/asvs.md")).unwrap();
    let sections = [(7, 1, 3), (7, 2, 4), (7, 3, 2), (7, 4, 5), (7, 5, 3), (7, 6, 2), (3, 3, 5)];
    for (chapter, section, items) in sections {
        for item in 1..=items {
            let number = format!("{chapter}.{section}.{item}");
            let row = rows(&text).find(|row| row[0] == number);
            let row = row.unwrap_or_else(|| panic!("{number} is missing"));
            let is_ours = match row[2] {
                "done" | "offered" => true,
                "yours" => false,
                other => panic!("{number}: {other:?}"),
            };
            assert_eq!(row.last().unwrap().contains('`'), is_ours, "{number}");
        }
    }
}
