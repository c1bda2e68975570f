import Foundation
import PackagePlugin

/// Compiles each program in `bpf/` and embeds it, so that a plain `swift build` is enough and nothing has to be installed
/// beside the agent.
@main struct CompileBPF: BuildToolPlugin {
  func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
    let root = context.package.directoryURL
    let script = root.appending(path: "scripts/compile-bpf")
    let folder = root.appending(path: "bpf")
    let headers = try files(in: folder.appending(path: "include"), suffix: ".h")
    return try files(in: folder, suffix: ".c").map { source in
      let name = source.deletingPathExtension().lastPathComponent
      let output = context.pluginWorkDirectoryURL.appending(path: "\(name).swift")
      return .buildCommand(
        displayName: "Compiling bpf/\(name).c", executable: script, arguments: [source.path, output.path],
        inputFiles: [script, source] + headers, outputFiles: [output])
    }
  }

  private func files(in folder: URL, suffix: String) throws -> [URL] {
    try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
      .filter { $0.lastPathComponent.hasSuffix(suffix) }
      .sorted { $0.path < $1.path }
  }
}
