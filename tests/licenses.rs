//! The licenses of all dependencies of the binary.
//!
//! Security advisories are not checked here, since that needs network access; see `scripts/advisories.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use std::process::Command;

/// Allowed licenses: each permits inclusion in an Apache-2.0 binary (MPL-2.0 as long as the dependency itself is not
/// modified).
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Zlib",
];

/// Whether some alternative of an SPDX expression is allowed. Parentheses are supported only around alternatives.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some((before, rest)) = expression.split_once('(') {
        let (inner, after) = rest.split_once(')').unwrap_or((rest, ""));
        let beside = [before.trim().trim_end_matches("AND").trim(), after.trim().trim_start_matches("AND").trim()];
        return allowed(inner) && beside.iter().all(|part| part.is_empty() || allowed(part));
    }
    expression.split(" OR ").any(|choice| choice.split(" AND ").all(|license| ALLOWED.contains(&license.trim())))
}

#[test]
fn licenses_of_all_dependencies_are_allowed() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !allowed(package["license"].as_str().unwrap_or_default()))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(packages.len() > 100, "{} packages", packages.len());
    assert!(refused.is_empty(), "licenses that are not allowed:\n{}", refused.join("\n"));
}

#[test]
fn license_expressions_are_parsed() {
    for expression in
        ["MIT", "MIT OR Apache-2.0", "GPL-2.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0"]
    {
        assert!(allowed(expression), "{expression}");
    }
    for expression in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND OpenSSL"] {
        assert!(!allowed(expression), "{expression}");
    }
}
