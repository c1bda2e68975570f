import ArgumentParser
import LocalAPI

struct EndpointCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "endpoint", abstract: "Pods of this node.", subcommands: [EndpointList.self],
    defaultSubcommand: EndpointList.self, aliases: ["ep"])
}

struct EndpointList: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "list", abstract: "Attached pods with their addresses.")
  @OptionGroup var options: GlobalOptions

  func run() throws {
    let answer = try options.get("/v1/endpoints")
    func pod(_ item: JSONValue) -> String {
      let name = item.text("podName")
      return name.isEmpty ? item.text("containerID") : "\(item.text("podNamespace"))/\(name)"
    }
    Output.list(answer, options, name: pod) { items, wide in
      Table(
        headers: ["POD", "INTERFACE", "ADDRESSES"] + (wide ? ["MAC", "CONTAINER", "NETNS"] : []),
        rows: items.map { item in
          let addresses = item["addresses"]?.arrayValue?.compactMap(\.stringValue).joined(separator: ",") ?? ""
          return [pod(item), item.text("hostInterface"), addresses]
            + (wide ? [item.text("mac"), item.text("containerID"), item.text("netnsPath")] : [])
        })
    }
  }
}
