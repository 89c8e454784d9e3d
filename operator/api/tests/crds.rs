//! The generated YAML is current.

use std::path::Path;

#[test]
fn the_yaml_in_deploy_is_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let manifests = whetstone_api::manifests().unwrap();
    for manifest in &manifests {
        let there = std::fs::read_to_string(folder.join(&manifest.file)).unwrap_or_default();
        assert_eq!(
            there, manifest.text,
            "{}: run `whetstone-operator crds --out deploy/crds`",
            manifest.file
        );
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, manifests.len(), "a file in deploy/crds that no type stands for");
}
