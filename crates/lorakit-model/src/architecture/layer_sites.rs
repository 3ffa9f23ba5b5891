//! The sites of a base with their modules and widths: those of its layers, its embedding and its head.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::{Features, LayerDescriptor, ProjectionDescriptor, SiteDescriptor};
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
    /// What layer `index` is made of.
    pub(crate) fn layer_descriptor(&self, index: usize) -> LayerDescriptor {
        let encoder = self.descriptor.encoder_layer().filter(|_| self.is_encoder_layer(index));
        encoder.unwrap_or_else(|| self.descriptor.layer())
    }

    /// The module of layer `index`.
    pub(crate) fn layer_module(&self, index: usize) -> String {
        let before = self.encoder.map_or(0, |encoder| encoder.layers);
        format!("{}.{}", self.layer_descriptor(index).layers, index.checked_sub(before).unwrap_or(index))
    }

    /// The sites of layer `index`, in the order in which it visits them.
    pub(crate) fn sites(&self, index: usize) -> Vec<Site> {
        let sites = self.layer_descriptor(index).sites().into_iter();
        sites.map(|(role, site)| self.site(index, role, &site)).collect()
    }

    /// A site of layer `index`.
    pub(crate) fn site(&self, index: usize, role: SiteRole, site: &SiteDescriptor) -> Site {
        let input = match role {
            SiteRole::AttentionOutput => self.heads * self.head_dim,
            SiteRole::MlpOutput => self.intermediate,
            _ => self.hidden,
        };
        let module = self.layer_module(index);
        let projection = |projection: &ProjectionDescriptor| Projection {
            module: format!("{module}.{}", projection.module),
            width: projection.outputs.iter().map(|features| features.width(self)).sum(),
        };
        let projections = site.projections.iter().map(projection).collect();
        Site { layer: Some(index), name: site.name, role, input, projections }
    }

    /// The matrices that tokens are multiplied with and the embedding, by the names of their tensors, `[rows, columns]`.
    pub(crate) fn matrices(&self) -> Vec<(String, [usize; 2])> {
        let weight = |module: &str| format!("{module}.weight");
        let vocabulary = [self.vocabulary, self.hidden];
        let mut matrices = vec![(weight(self.descriptor.embedding), vocabulary)];
        for site in (0..self.layers).flat_map(|index| self.sites(index)) {
            let of_site = site.projections.iter().map(|p| (weight(&p.module), [p.width, site.input]));
            matrices.extend(of_site);
        }
        if !self.tied {
            matrices.push((weight(self.descriptor.lm_head), vocabulary));
        }
        matrices
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
