//! The sites of a base with their modules and widths: those of its layers, its embedding and its head.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::Features;
use lorakit_lora::{Projection, Site, SiteRole};

impl Features {
    /// Number of features.
    fn width(self, config: &BaseConfig) -> usize {
        match self {
            Self::Queries => config.heads * config.head_dim,
            Self::Keys | Self::Values => config.kv_heads * config.head_dim,
            Self::Inner => config.intermediate,
            Self::Hidden => config.hidden,
        }
    }
}

impl BaseConfig {
    /// The four sites of layer `index`, in the order of [`Descriptor::sites`].
    pub(crate) fn sites(&self, index: usize) -> [Site; 4] {
        let layers = self.descriptor.layers;
        let input = |role| match role {
            SiteRole::AttentionOutput => self.heads * self.head_dim,
            SiteRole::MlpOutput => self.intermediate,
            _ => self.hidden,
        };
        self.descriptor.sites().map(|(role, site)| Site {
            layer: Some(index),
            name: site.name,
            role,
            input: input(role),
            projections: site
                .projections
                .iter()
                .map(|projection| Projection {
                    module: format!("{layers}.{index}.{}", projection.module),
                    width: projection.outputs.iter().map(|features| features.width(self)).sum(),
                })
                .collect(),
        })
    }

    /// The sites outside the layers: the embedding, which reads token ids, and the head.
    pub(crate) fn outer_sites(&self) -> [Site; 2] {
        let site = |role, name, (input, module, width): (usize, &str, usize)| Site {
            layer: None,
            name,
            role,
            input,
            projections: vec![Projection { module: module.to_owned(), width }],
        };
        [
            site(SiteRole::Embedding, "embedding", (self.vocabulary, self.descriptor.embedding, self.hidden)),
            site(SiteRole::LmHead, "head", (self.hidden, self.descriptor.lm_head, self.vocabulary)),
        ]
    }
}
