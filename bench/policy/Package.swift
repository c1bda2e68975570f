// swift-tools-version: 6.2
import PackageDescription

/// A package of its own, over links to the targets it measures: it builds in a minute, needs no other package, and the
/// product needs no library products for it.
let package = Package(
  name: "policy-bench",
  targets: [
    .target(name: "NetworkTypes"),
    .target(name: "DataplaneModel", dependencies: ["NetworkTypes"]),
    .target(name: "KubernetesObjects", dependencies: ["NetworkTypes"]),
    .target(name: "PolicyCompiler", dependencies: ["DataplaneModel", "KubernetesObjects"]),
    .target(name: "CLinux"),
    .systemLibrary(name: "CLibMNL", pkgConfig: "libmnl"),
    .systemLibrary(name: "CLibNFTNL", pkgConfig: "libnftnl"),
    .target(name: "Netlink", dependencies: ["NetworkTypes", "CLinux"]),
    .target(name: "NFTables", dependencies: ["DataplaneModel", "Netlink", "CLinux", "CLibMNL", "CLibNFTNL"]),
    .executableTarget(name: "policy-bench", dependencies: ["PolicyCompiler", "NFTables"]),
  ],
  swiftLanguageModes: [.v6]
)
