// Kimi K2 (arXiv 2507.20534): DeepSeek-V3 under another name.
#include "model/family.h"

namespace lynx_rt {

const Family& deepseek_v3_family();

const Family& kimi_k2_family() {
  static const Family family{"kimi_k2", deepseek_v3_family().read_config, deepseek_v3_family().specs, {}};
  return family;
}

}  // namespace lynx_rt
